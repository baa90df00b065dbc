//! Constants that would be large before a template runs: minijinja computes what depends on nothing while it compiles, where
//! there is no fuel. Texts it keeps small; a list times a number it does not.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};

/// Bytes of texts that such a list may name, if every item is a text as long as the template.
const MAX_BYTES: usize = 1 << 26;

/// Whether a template of so many bytes multiplies a list to more than that.
pub(super) fn repeats_a_list(template: &Stmt<'_>, bytes: usize) -> bool {
    let search = Search {
        max_items: MAX_BYTES / bytes.max(1),
    };
    search.statement(template)
}

struct Search {
    max_items: usize,
}

impl Search {
    fn any(&self, statements: &[Stmt<'_>]) -> bool {
        statements.iter().any(|it| self.statement(it))
    }

    fn statement(&self, of: &Stmt<'_>) -> bool {
        match of {
            Stmt::Template(it) => self.any(&it.children),
            Stmt::EmitExpr(it) => self.expr(&it.expr),
            Stmt::ForLoop(it) => {
                self.expr(&it.iter)
                    || it.filter_expr.as_ref().is_some_and(|it| self.expr(it))
                    || self.any(&it.body)
                    || self.any(&it.else_body)
            }
            Stmt::IfCond(it) => {
                self.expr(&it.expr) || self.any(&it.true_body) || self.any(&it.false_body)
            }
            Stmt::WithBlock(it) => {
                it.assignments.iter().any(|(_, value)| self.expr(value)) || self.any(&it.body)
            }
            Stmt::Set(it) => self.expr(&it.target) || self.expr(&it.expr),
            Stmt::SetBlock(it) => {
                it.filter.as_ref().is_some_and(|it| self.expr(it)) || self.any(&it.body)
            }
            Stmt::AutoEscape(it) => self.expr(&it.enabled) || self.any(&it.body),
            Stmt::FilterBlock(it) => self.expr(&it.filter) || self.any(&it.body),
            Stmt::Block(it) => self.any(&it.body),
            Stmt::Import(it) => self.expr(&it.expr),
            Stmt::FromImport(it) => self.expr(&it.expr),
            Stmt::Extends(it) => self.expr(&it.name),
            Stmt::Include(it) => self.expr(&it.name),
            Stmt::Macro(it) => it.defaults.iter().any(|it| self.expr(it)) || self.any(&it.body),
            Stmt::CallBlock(it) => {
                self.expr(&it.call.expr)
                    || self.arguments(&it.call.args)
                    || it.macro_decl.defaults.iter().any(|it| self.expr(it))
                    || self.any(&it.macro_decl.body)
            }
            Stmt::Do(it) => self.expr(&it.call.expr) || self.arguments(&it.call.args),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => false,
        }
    }

    /// The parts first: what is made of large constants must not be computed.
    fn expr(&self, of: &Expr<'_>) -> bool {
        match of {
            Expr::Var(_) | Expr::Const(_) => false,
            Expr::Slice(it) => {
                let ends = [&it.start, &it.stop, &it.step];
                self.expr(&it.expr) || ends.into_iter().flatten().any(|it| self.expr(it))
            }
            Expr::UnaryOp(it) => self.expr(&it.expr),
            Expr::BinOp(it) => {
                self.expr(&it.left) || self.expr(&it.right) || {
                    let is_product = matches!(it.op, BinOpKind::Mul);
                    is_product
                        && of.as_const().is_some_and(|product| {
                            product.as_object().is_some()
                                && product.len().is_none_or(|items| items > self.max_items)
                        })
                }
            }
            Expr::Compare(it) => self.expr(&it.expr) || it.ops.iter().any(|op| self.expr(&op.expr)),
            Expr::IfExpr(it) => {
                self.expr(&it.test_expr)
                    || self.expr(&it.true_expr)
                    || it.false_expr.as_ref().is_some_and(|it| self.expr(it))
            }
            Expr::Filter(it) => {
                it.expr.as_ref().is_some_and(|it| self.expr(it)) || self.arguments(&it.args)
            }
            Expr::Test(it) => self.expr(&it.expr) || self.arguments(&it.args),
            Expr::GetAttr(it) => self.expr(&it.expr),
            Expr::GetItem(it) => self.expr(&it.expr) || self.expr(&it.subscript_expr),
            Expr::Call(it) => self.expr(&it.expr) || self.arguments(&it.args),
            Expr::List(it) => it.items.iter().any(|it| self.expr(it)),
            Expr::Tuple(it) => it.items.iter().any(|it| self.expr(it)),
            Expr::Map(it) => it.keys.iter().chain(&it.values).any(|it| self.expr(it)),
        }
    }

    fn arguments(&self, of: &[CallArg<'_>]) -> bool {
        of.iter().any(|argument| match argument {
            CallArg::Pos(it) | CallArg::PosSplat(it) | CallArg::KwargSplat(it) => self.expr(it),
            CallArg::Kwarg(_, it) => self.expr(it),
        })
    }
}
