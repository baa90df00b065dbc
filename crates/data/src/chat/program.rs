//! A compiled template in which whatever walks through values looks first at what that costs.
//!
//! Filters, tests, methods and functions can be wrapped, operators cannot: `[text] * n ~ ''`, `a == b` and `x in list` are
//! instructions of their own. So a call is put before each of these, which takes its operands, looks at them, and puts them
//! back. The instruction itself stays, and with it what it means.

use std::collections::BTreeMap;
use std::fmt;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, eval, make_string_output, parse,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use super::constants::repeats_a_list;
use super::weight::{check_held, pay, pay_for_key, pay_to_compare};

/// What is called before an instruction, and with how many of the values on the stack.
type Look = (&'static str, usize);

// A template cannot call these: no name in it has this sign.
const WRITTEN: &str = "#written";
const COMPARED: &str = "#compared";
const SEARCHED: &str = "#searched";
const CHANGED: &str = "#changed";
const KEY: &str = "#key";
const KEYS: &str = "#keys";
const HELD: &str = "#held";

/// A template that can be run.
pub(super) struct Program {
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Program")
            .field(&self.instructions.name())
            .finish()
    }
}

impl Program {
    /// Compiles a template. Its text stays in memory until the process ends: a run has one or two.
    ///
    /// # Errors
    /// A text that is no template, or one with large constants.
    pub(super) fn new(
        name: &'static str,
        text: String,
        syntax: SyntaxConfig,
    ) -> Result<Self, Error> {
        let text: &'static str = text.leak();
        let template = parse(text, name, syntax)?;
        if repeats_a_list(&template, text.len()) {
            let problem = "a list is multiplied by a large number";
            return Err(Error::new(ErrorKind::SyntaxError, problem));
        }
        let mut generator = CodeGenerator::new(name, text);
        generator.compile_stmt(&template);
        let (instructions, blocks) = generator.finish();
        let blocks = blocks.iter();
        let blocks = blocks.map(|(name, block)| Ok((*name, watched(block)?)));
        Ok(Self {
            instructions: watched(&instructions)?,
            blocks: blocks.collect::<Result<_, Error>>()?,
        })
    }

    /// What the template writes, and the fuel it took.
    ///
    /// # Errors
    /// Whatever goes wrong in it; the end of its fuel.
    pub(super) fn run(
        &self,
        environment: &Environment<'static>,
        context: Value,
    ) -> Result<(String, u64), Error> {
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let (_, state) = eval(
            environment,
            &self.instructions,
            context,
            &self.blocks,
            &mut out,
            AutoEscape::None,
        )?;
        let used = state.fuel_levels().map_or(0, |(used, _)| used);
        drop(state);
        Ok((text, used))
    }
}

/// What looks before an instruction.
fn look_before(instruction: &Instruction<'_>) -> Result<Option<Look>, Error> {
    Ok(Some(match instruction {
        Instruction::StringConcat => (WRITTEN, 2),
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::Gt
        | Instruction::Gte => (COMPARED, 2),
        // What comes behind it may be `in`, which looks at no less.
        Instruction::CompareAndPreserve(_) | Instruction::In => (SEARCHED, 2),
        Instruction::GetItem => (KEY, 2),
        Instruction::BuildMap(pairs) => (KEYS, 2 * pairs),
        Instruction::SetAttr(_) => (HELD, 2),
        // The methods of minijinja's own objects: the first compares, the second divides by the number of its arguments.
        Instruction::CallMethod("changed", Some(count)) => (CHANGED, usize::from(*count)),
        Instruction::CallMethod("changed" | "cycle", None)
        | Instruction::CallMethod("cycle", Some(1)) => {
            let problem = "loop.changed and loop.cycle want their values one by one";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        _ => return Ok(None),
    }))
}

/// The same instructions with looks before those that need one.
fn watched(instructions: &Instructions<'static>) -> Result<Instructions<'static>, Error> {
    let all: Vec<&Instruction<'static>> = (0..).map_while(|at| instructions.get(at)).collect();
    let looks: Vec<Option<Look>> = all
        .iter()
        .map(|instruction| look_before(instruction))
        .collect::<Result<_, _>>()?;
    // A jump to an instruction is one to its look.
    let mut places = Vec::with_capacity(all.len() + 1);
    let mut next = 0;
    for look in &looks {
        places.push(next);
        next += if look.is_some() { 3 } else { 1 };
    }
    places.push(next);
    let moved = |target: u32| places[target as usize];

    let mut out = Instructions::new(instructions.name(), instructions.source());
    for (at, (instruction, look)) in (0..).zip(all.into_iter().zip(looks)) {
        let line = instructions.get_line(at);
        let mut add = |instruction| match line.and_then(|line| u16::try_from(line).ok()) {
            Some(line) => out.add_with_line(instruction, line),
            None => out.add(instruction),
        };
        if let Some((name, count)) = look {
            let problem = |_| Error::new(ErrorKind::SyntaxError, "a map is too large");
            let arguments = u16::try_from(count).map_err(problem)?;
            add(Instruction::CallFunction(name, Some(arguments)));
            add(Instruction::UnpackList(count));
        }
        add(match *instruction {
            Instruction::Iterate(to) => Instruction::Iterate(moved(to)),
            Instruction::Jump(to) => Instruction::Jump(moved(to)),
            Instruction::JumpIfFalse(to) => Instruction::JumpIfFalse(moved(to)),
            Instruction::JumpIfFalseOrPop(to) => Instruction::JumpIfFalseOrPop(moved(to)),
            Instruction::JumpIfTrueOrPop(to) => Instruction::JumpIfTrueOrPop(moved(to)),
            Instruction::BuildMacro(name, begin, flags) => {
                Instruction::BuildMacro(name, moved(begin), flags)
            }
            ref other => other.clone(),
        });
    }
    Ok(out)
}

/// The functions that [`watched`] puts calls of.
pub(super) fn add_looks(environment: &mut Environment<'_>) {
    type Paying = fn(&State, &[Value]) -> Result<(), Error>;
    let looks: [(&str, Paying); 7] = [
        (WRITTEN, |state, values| {
            values.iter().try_for_each(|value| pay(state, value))
        }),
        (COMPARED, |state, values| match values {
            [a, b] => pay_to_compare(state, a, b),
            _ => Ok(()),
        }),
        (SEARCHED, |state, values| match values {
            [wanted, place] => searched(state, wanted, place),
            _ => Ok(()),
        }),
        (CHANGED, |state, values| {
            let mut values = values.iter().skip(1);
            values.try_for_each(|value| pay_for_key(state, value))
        }),
        (KEY, |state, values| match values {
            [_, key] => pay_for_key(state, key),
            _ => Ok(()),
        }),
        (KEYS, |state, values| {
            let mut keys = values.iter().step_by(2);
            keys.try_for_each(|key| pay_for_key(state, key))
        }),
        (HELD, |state, values| match values {
            [value, _] => check_held(state, value),
            _ => Ok(()),
        }),
    ];
    for (name, look) in looks {
        let call = move |state: &State<'_, '_>, values: Rest<Value>| -> Result<Value, Error> {
            look(state, &values)?;
            // `UnpackList` leaves the first on top.
            Ok(values.0.into_iter().rev().collect())
        };
        environment.add_function(name, call);
    }
}

/// `wanted in place`: a map looks a key up, a list is compared, a text is searched for a text.
pub(super) fn searched(state: &State, wanted: &Value, place: &Value) -> Result<(), Error> {
    match place.kind() {
        ValueKind::Map => pay_for_key(state, wanted),
        _ if place.as_str().is_some() && wanted.as_str().is_some() => {
            pay_to_compare(state, wanted, place)
        }
        _ => {
            pay(state, place)?;
            pay(state, wanted)
        }
    }
}
