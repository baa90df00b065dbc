//! What Jinja2 templates get from Python and minijinja does otherwise.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;
use serde::Serialize;
use serde_json::ser::Formatter;

use super::fuel::{Bounded, check_format};
use super::weight::{BYTES_OF_FUEL, MAX_DEPTH, out_of_fuel, pay, pay_for_key};

/// What Python's `str.strip()` takes off: white space of Unicode, and four separators that Unicode counts as controls.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The filter `trim`: `str(value).strip(chars)`.
pub(super) fn trim(state: &State, value: &Value, chars: Option<String>) -> Result<String, Error> {
    let mut text = Bounded::new(state);
    text.push(state, value)?;
    Ok(strip("strip", &text.text, chars.as_deref()).to_owned())
}

/// Python's `strip`, `lstrip` or `rstrip`.
fn strip<'a>(name: &str, text: &'a str, chars: Option<&str>) -> &'a str {
    let chars: Option<HashSet<char>> = chars.map(|chars| chars.chars().collect());
    let is_taken = |c: char| match &chars {
        Some(chars) => chars.contains(&c),
        None => is_space(c),
    };
    match name {
        "lstrip" => text.trim_start_matches(is_taken),
        "rstrip" => text.trim_end_matches(is_taken),
        _ => text.trim_matches(is_taken),
    }
}

/// Python's methods. Those whose work is more than what they are given and return are done or paid for here.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let length = |value: &Value| value.as_str().map_or(1, str::len) as u64;
    args.iter().try_for_each(|arg| pay_for_key(state, arg))?;
    match (name, value.as_str(), args) {
        ("strip" | "lstrip" | "rstrip", Some(text), []) => Ok(strip(name, text, None).into()),
        ("strip" | "lstrip" | "rstrip", Some(text), [chars]) if chars.as_str().is_some() => {
            Ok(strip(name, text, chars.as_str()).into())
        }
        ("join", Some(separator), [values]) => {
            let mut joined = Bounded::new(state);
            for (index, item) in values.try_iter()?.checked().enumerate() {
                if index > 0 {
                    joined.write_str(separator).map_err(|_| out_of_fuel())?;
                }
                joined.push(state, &item?)?;
            }
            Ok(joined.text.into())
        }
        ("startswith" | "endswith", Some(_), [many]) if many.as_str().is_none() => {
            let count = many.len().unwrap_or(0) as u64;
            state.consume_fuel(count.saturating_mul(length(value)) / BYTES_OF_FUEL)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        ("format", Some(text), _) => {
            check_format(text, args)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        ("count", None, [what]) => {
            pay(state, value)?;
            let count = value.len().unwrap_or(0) as u64;
            state.consume_fuel(count.saturating_mul(length(what)) / BYTES_OF_FUEL)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The function `strftime_now`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    // A letter may ask for a field of 255 characters.
    const MAX_BYTES: usize = 1 << 10;
    if format.len() > MAX_BYTES {
        return Err(wrong("strftime_now: the format is too long"));
    }
    jiff::fmt::strtime::format(format, jiff::Timestamp::now()).map_err(|e| wrong(e.to_string()))
}

/// The filter `tojson` as transformers replaces it: `json.dumps` with `ensure_ascii=False`, keys in their order, nothing
/// escaped for HTML.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    arguments: Kwargs,
) -> Result<String, Error> {
    let given: Option<bool> = arguments.get("ensure_ascii")?;
    let indent: Option<Value> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    pay(state, value)?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(64))),
        },
    };
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(wrong("tojson: separators must be two")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut dump = Dump {
        item,
        key,
        indent,
        depth: 0,
        has_value: false,
        is_ascii: ensure_ascii.or(given).unwrap_or(false),
    };
    let value = match sort_keys.unwrap_or(false) {
        true => &sorted(value, 0)?,
        false => value,
    };
    let mut out = Bytes(Bounded::new(state));
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, &mut dump);
    let written = value.serialize(&mut serializer);
    written.map_err(|error| match error.is_io() {
        true => out_of_fuel(),
        false => wrong(format!("tojson: {error}")),
    })?;
    Ok(out.0.text)
}

/// Text as it is serialised: whole characters at a time.
struct Bytes(Bounded);

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.write_str(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same with the keys of all maps in order.
fn sorted(value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(wrong("tojson: the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()?.checked() {
                let key = key?;
                pairs.push((key.clone(), sorted(&value.get_item(&key)?, depth + 1)?));
            }
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(Value::from_pairs(pairs))
        }
        ValueKind::Seq => {
            let values = value.try_iter()?.checked();
            let values: Result<Vec<Value>, Error> =
                values.map(|value| sorted(&value?, depth + 1)).collect();
            values.map(Value::from)
        }
        _ => Ok(value.clone()),
    }
}

fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// JSON as Python's `json.dumps` writes it.
struct Dump {
    item: String,
    key: String,
    indent: Option<String>,
    depth: usize,
    has_value: bool,
    is_ascii: bool,
}

impl Dump {
    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.new_line(out)?;
        }
        self.has_value = true;
        out.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, out: &mut W, is_first: bool) -> io::Result<()> {
        if !is_first {
            out.write_all(self.item.as_bytes())?;
        }
        self.new_line(out)
    }

    fn new_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(indent.as_bytes()))
    }
}

impl Formatter for &mut Dump {
    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float(value).as_bytes())
    }

    fn write_null<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b"null")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.is_ascii {
            return out.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for c in fragment.chars() {
            match c {
                ' '..='\u{7e}' => write!(out, "{c}")?,
                _ => {
                    for unit in c.encode_utf16(&mut units) {
                        write!(out, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _out: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _out: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }
}

/// `repr` of a finite float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if value == 0.0 {
        return if value.is_sign_negative() {
            "-0.0"
        } else {
            "0.0"
        }
        .into();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(power) if !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.abs())
        }
        _ => {
            let plain = value.to_string();
            if plain.contains('.') {
                plain
            } else {
                plain + ".0"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(template: &str, json: &str) -> String {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", to_json);
        let value: Value = serde_json::from_str(json).unwrap();
        let context = Value::from_pairs([("x", value)]);
        environment.render_str(template, context).unwrap()
    }

    /// What `json.dumps` of CPython 3.11 prints.
    #[test]
    fn json_is_written_as_python_does() {
        let json = r#"{"b": [1, 2.0, 1e22, 1e-7, 0.1, true, null], "a": {"é<>": "\"\n\u0001 猫"}, "c": [], "d": {}}"#;
        assert_eq!(
            dumped("{{ x | tojson }}", json),
            "{\"b\": [1, 2.0, 1e+22, 1e-07, 0.1, true, null], \"a\": {\"é<>\": \"\\\"\\n\\u0001 猫\"}, \"c\": [], \"d\": {}}"
        );
        assert_eq!(
            dumped(
                "{{ x | tojson(indent=2) }}",
                r#"{"a": [1, {"b": []}], "c": {}}"#
            ),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ],\n  \"c\": {}\n}"
        );
        assert_eq!(
            dumped(
                "{{ x | tojson(ensure_ascii=true, sort_keys=true) }}",
                r#"{"b": "é😺", "a": 1}"#
            ),
            r#"{"a": 1, "b": "\u00e9\ud83d\ude3a"}"#
        );
        assert_eq!(
            dumped(
                "{{ x | tojson(separators=(',', ':')) }}",
                r#"{"b": [1, 2], "a": 1}"#
            ),
            r#"{"b":[1,2],"a":1}"#
        );
    }

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e-10, "-2.5e-10"),
            (1.5e300, "1.5e+300"),
            (-0.0, "-0.0"),
        ];
        for (value, text) in cases {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn strip_takes_off_what_python_does() {
        let of = |text, chars| strip("strip", text, chars);
        assert_eq!(of("\u{1c}\u{85}\u{a0} x \u{1f}\n", None), "x");
        assert_eq!(of("\u{200b}x", None), "\u{200b}x");
        assert_eq!(of("--x-", Some("-")), "x");
        assert_eq!(strip("lstrip", "--x-", Some("-y")), "x-");
        assert_eq!(strip("rstrip", " x ", None), " x");
        let mut environment = minijinja::Environment::new();
        environment.add_filter("trim", trim);
        assert_eq!(
            environment.render_str("{{ none | trim }}", ()).unwrap(),
            "None"
        );
    }
}
