//! Filters and tests that ask whether the fuel of a template lasts before they walk through what they are given.

use std::fmt::{self, Write as _};

use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter, filters, tests};

use super::weight::{bytes_left, out_of_fuel, pay, pay_for_key};

/// Digits of a number in a format that may be the width of a field.
const MAX_WIDTH_DIGITS: usize = 5;

/// The same for a width that is an argument.
const MAX_WIDTH: i64 = 99_999;

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
            limit: usize::try_from(bytes_left(state)).unwrap_or(usize::MAX),
        }
    }

    /// Appends what `str(value)` is.
    pub(super) fn push(&mut self, state: &State, value: &Value) -> Result<(), Error> {
        pay(state, value)?;
        write!(self, "{value}").map_err(|_| out_of_fuel())
    }
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

/// What a filter or test is given, with what is given by name as the last.
type Given = Rest<ValueOrKwargs>;

fn values(given: Given) -> Vec<Value> {
    given.0.into_iter().map(ValueOrKwargs::into_value).collect()
}

/// Filters that write their arguments down, or compare what is in them.
fn walking_filters() -> Vec<(&'static str, Value)> {
    vec![
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("string", Value::from_function(filters::string)),
        ("safe", Value::from_function(filters::safe)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("join", Value::from_function(filters::join)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("replace", Value::from_function(replace)),
        ("indent", Value::from_function(indent)),
        ("pprint", Value::from_function(pprint)),
        ("format", Value::from_function(format)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
        ("groupby", Value::from_function(filters::groupby)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sum", Value::from_function(sum)),
    ]
}

/// Tests that compare, or look a text through.
fn walking_tests() -> Vec<(&'static str, Value)> {
    let pairs = [
        (["eq", "equalto", "=="], Value::from_function(tests::is_eq)),
        (["ne", "!=", "!="], Value::from_function(tests::is_ne)),
        (["lt", "lessthan", "<"], Value::from_function(tests::is_lt)),
        (["le", "<=", "<="], Value::from_function(tests::is_le)),
        (
            ["gt", "greaterthan", ">"],
            Value::from_function(tests::is_gt),
        ),
        (["ge", ">=", ">="], Value::from_function(tests::is_ge)),
    ];
    let named = pairs
        .into_iter()
        .flat_map(|(names, test)| names.map(|name| (name, test.clone())));
    named
        .chain([
            ("in", Value::from_function(tests::is_in)),
            ("lower", Value::from_function(tests::is_lower)),
            ("upper", Value::from_function(tests::is_upper)),
            ("startingwith", Value::from_function(tests::is_startingwith)),
            ("endingwith", Value::from_function(tests::is_endingwith)),
        ])
        .collect()
}

/// Lets what is written down or compared be looked at first.
pub(super) fn watch(environment: &mut Environment<'_>) {
    environment.set_formatter(show);
    // It writes down all that there is. Jinja2 has none.
    environment.remove_global("debug");
    for (name, filter) in walking_filters() {
        let checked = move |state: &mut State<'_, '_>, args: Given| -> Result<Value, Error> {
            let args = values(args);
            args.iter().try_for_each(|arg| pay(state, arg))?;
            filter.call(state, &args)
        };
        environment.add_filter(name, checked);
    }
    for (name, test) in walking_tests() {
        let checked = move |state: &mut State<'_, '_>, args: Given| -> Result<bool, Error> {
            let args = values(args);
            args.iter().try_for_each(|arg| pay_for_key(state, arg))?;
            Ok(test.call(state, &args)?.is_true())
        };
        environment.add_test(name, checked);
    }
}

fn show(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    pay(state, value)?;
    escape_formatter(out, state, value)
}

/// The filter `format`.
fn format(state: &mut State<'_, '_>, args: Given) -> Result<Value, Error> {
    let args = values(args);
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    check_format(text, &args)?;
    Value::from_function(filters::format).call(state, &args)
}

/// The filter `replace`, with its number of times as a third argument or by name.
fn replace(state: &mut State<'_, '_>, args: Given) -> Result<Value, Error> {
    let args = values(args);
    let (text, from, to, count, named): (String, String, String, Option<i64>, Kwargs) =
        from_args(&args)?;
    let named_count: Option<i64> = named.get("count")?;
    named.assert_all_used()?;
    // Fewer than none means all of them.
    let times = count
        .or(named_count)
        .and_then(|count| usize::try_from(count).ok());
    let times = times.unwrap_or(usize::MAX);
    let found = text.matches(&*from).take(times).count();
    let more = found.saturating_mul(to.len().saturating_sub(from.len()));
    if more as u64 >= bytes_left(state) {
        return Err(out_of_fuel());
    }
    Ok(text.replacen(&*from, &to, times).into())
}

/// The filter `indent`, with the width that it may have.
fn indent(state: &mut State<'_, '_>, args: Given) -> Result<Value, Error> {
    let args = values(args);
    let lines = args.first().and_then(Value::as_str);
    let lines = lines.map_or(1, |text| text.matches('\n').count() + 1) as u64;
    let width = |value: &Value| value.as_usize().unwrap_or(0) as u64;
    let given = args.iter().skip(1).map(|arg| match arg.get_attr("width") {
        Ok(named) if !named.is_undefined() => width(&named),
        _ => width(arg),
    });
    let widest = given.max().unwrap_or(0);
    if widest.saturating_mul(lines) >= bytes_left(state) {
        return Err(out_of_fuel());
    }
    Value::from_function(filters::indent).call(state, &args)
}

/// The filter `pprint`.
fn pprint(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut text = Bounded::new(state);
    write!(text, "{value:#?}").map_err(|_| out_of_fuel())?;
    Ok(text.text)
}

/// The filter `sum`. Like Python's it takes no texts, which would be copied once for each.
fn sum(state: &mut State<'_, '_>, args: Given) -> Result<Value, Error> {
    let args = values(args);
    let named = args.last().and_then(|last| last.get_attr("start").ok());
    if args
        .iter()
        .skip(2)
        .chain(&named)
        .any(|start| start.as_str().is_some())
    {
        let problem = "sum cannot add texts: use join";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    Value::from_function(filters::sum).call(state, &args)
}
