//! What Jinja2 templates get from Python and minijinja does otherwise.

use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

/// What Python's `str.strip()` takes off: white space of Unicode, and four separators that Unicode counts as controls.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The filter `trim`: `str(value).strip(chars)`.
pub(super) fn trim(value: &Value, chars: Option<String>) -> String {
    let text = value.to_string();
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}

/// The filter `tojson` as transformers replaces it: `json.dumps` with `ensure_ascii=False`, keys in their order, nothing
/// escaped for HTML.
pub(super) fn to_json(
    value: &Value,
    ensure_ascii: Option<bool>,
    arguments: Kwargs,
) -> Result<String, Error> {
    let given: Option<bool> = arguments.get("ensure_ascii")?;
    let indent: Option<Value> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
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
        true => &sorted(value)?,
        false => value,
    };
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, &mut dump);
    let written = value.serialize(&mut serializer);
    written.map_err(|error| wrong(format!("tojson: {error}")))?;
    String::from_utf8(out).map_err(|error| wrong(error.to_string()))
}

/// The same with the keys of all maps in order.
fn sorted(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()? {
                pairs.push((key.clone(), sorted(&value.get_item(&key)?)?));
            }
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(Value::from_pairs(pairs))
        }
        ValueKind::Seq => {
            let values: Result<Vec<Value>, Error> =
                value.try_iter()?.map(|value| sorted(&value)).collect();
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
    fn trim_takes_off_what_strip_does() {
        assert_eq!(
            trim(&Value::from("\u{1c}\u{85}\u{a0} x \u{1f}\n"), None),
            "x"
        );
        assert_eq!(trim(&Value::from("\u{200b}x"), None), "\u{200b}x");
        assert_eq!(trim(&Value::from("--x-"), Some("-".into())), "x");
        assert_eq!(trim(&Value::from(()), None), "None");
    }
}
