//! What several ranks of a row hold copies of.

use std::ops::Range;

/// A part of a unit that is replicated over (some of) the tensor parallel row. All ranks list the same replicas in the
/// same order, so a position in the list identifies one without talking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Hugging Face's name of the parameter.
    pub name: String,
    /// Elements.
    pub len: usize,
    /// Where it lies in this rank's flat buffer; `None` where this rank holds no copy.
    pub flat: Option<Range<usize>>,
    /// Each holder computes only a part of its gradient, and the parts are summed over the row: norms whose inputs are
    /// cut by token or head, and key/value heads that serve query heads of several ranks.
    pub partial_gradient: bool,
}
