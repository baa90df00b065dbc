//! What minijinja does for a template without asking whether its fuel lasts: it pays for what has been written, and a list may
//! name one long text a million times.

use std::fmt::{self, Write as _};

use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter, filters};

/// Bytes that pay for an instruction: minijinja's own rate.
pub(super) const BYTES_OF_FUEL: u64 = 64;

/// Digits of a number in a format that may be the width of a field.
const MAX_WIDTH_DIGITS: usize = 5;

/// The same for a width that is an argument.
const MAX_WIDTH: i64 = 99_999;

/// What a template may still create.
fn bytes_left(state: &State) -> usize {
    let left = state.fuel_levels().map(|(_, left)| left);
    left.map_or(usize::MAX, |left| {
        usize::try_from(left.saturating_mul(BYTES_OF_FUEL)).unwrap_or(usize::MAX)
    })
}

pub(super) fn out_of_fuel() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

/// Text that grows up to a limit.
pub(super) struct Bounded {
    pub(super) text: String,
    limit: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if more.len() > self.limit - self.text.len() {
            return Err(fmt::Error);
        }
        self.text.push_str(more);
        Ok(())
    }
}

impl Bounded {
    pub(super) fn new(state: &State) -> Self {
        Self {
            text: String::new(),
            limit: bytes_left(state),
        }
    }

    /// Appends what `str(value)` is.
    pub(super) fn push(&mut self, value: &Value) -> Result<(), Error> {
        write!(self, "{value}").map_err(|_| out_of_fuel())
    }
}

/// Bytes that are counted up to a limit.
struct Counted(usize);

impl fmt::Write for Counted {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.0 = self.0.checked_sub(more.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// Refuses a list or a map that is longer, written down, than what the fuel pays for.
fn check_length(state: &State, value: &Value) -> Result<(), Error> {
    if value.as_object().is_none() {
        return Ok(());
    }
    let mut left = Counted(bytes_left(state));
    write!(left, "{value}").map_err(|_| out_of_fuel())
}

/// Refuses fields that are wider than anything that is said.
pub(super) fn check_format(format: &str, args: &[Value]) -> Result<(), Error> {
    let is_wide = format
        .split(|c: char| !c.is_ascii_digit())
        .any(|digits| digits.len() > MAX_WIDTH_DIGITS);
    let is_wide_by_argument = format.contains('*')
        && args
            .iter()
            .any(|arg| arg.as_i64().is_some_and(|width| width.abs() > MAX_WIDTH));
    match is_wide || is_wide_by_argument {
        true => Err(out_of_fuel()),
        false => Ok(()),
    }
}

/// Lets what is written down be looked at first.
pub(super) fn watch(environment: &mut Environment<'_>) {
    environment.set_formatter(show);
    let writers = [
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("string", Value::from_function(filters::string)),
        ("safe", Value::from_function(filters::safe)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("join", Value::from_function(filters::join)),
    ];
    for (name, filter) in writers {
        let checked = move |state: &mut State<'_, '_>, args: Rest<Value>| -> Result<Value, Error> {
            args.iter().try_for_each(|arg| check_length(state, arg))?;
            filter.call(state, &args)
        };
        environment.add_filter(name, checked);
    }
    let format = Value::from_function(filters::format);
    let checked = move |state: &mut State<'_, '_>, args: Rest<Value>| -> Result<Value, Error> {
        let text = args.first().and_then(Value::as_str).unwrap_or_default();
        check_format(text, &args)?;
        args.iter().try_for_each(|arg| check_length(state, arg))?;
        format.call(state, &args)
    };
    environment.add_filter("format", checked);
}

fn show(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    check_length(state, value)?;
    escape_formatter(out, state, value)
}
