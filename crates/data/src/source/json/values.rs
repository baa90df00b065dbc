//! The values of a JSON file, one after the other, whichever way they are written down.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::parse;
use crate::source::MAX_DOCUMENT_BYTES;
use crate::source::error::SourceError;
use crate::source::input::Input;
use crate::source::lines::Lines;

/// Gives the text of each value, and the line that it begins in. What is in memory is one value.
pub(super) enum Values {
    /// One a line. Empty lines are none.
    Lines(Lines),
    /// Over several lines, or in an array.
    Spread(Spread),
}

impl Values {
    /// Looks at the beginning of a file: `[` is an array's; a first line that is only a part of a value is that of values
    /// over several lines.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let mut input = Input::open(path)?;
        let io = |source| SourceError::Io {
            path: path.into(),
            source,
        };
        let (first, blank_lines) = skip_blank(&mut input.reader).map_err(io)?;
        let spread = |input: Input, is_array: bool| {
            Self::Spread(Spread {
                path: path.into(),
                input,
                line: 1 + blank_lines,
                array: is_array.then_some(Place::Begin),
            })
        };
        if first == Some(b'[') {
            input.reader.consume(1);
            return Ok(spread(input, true));
        }
        let mut line = Vec::new();
        (&mut input.reader)
            .take(MAX_DOCUMENT_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(io)?;
        let is_part = first == Some(b'{')
            && std::str::from_utf8(&line).is_ok_and(|line| {
                parse(line, |parser| {
                    serde::de::Deserialize::deserialize(parser).map(|_: IgnoredAny| ())
                })
                .is_err_and(|error| error.is_eof())
            });
        let input = input.unread(line);
        if is_part {
            return Ok(spread(input, false));
        }
        let mut lines = Lines::of(path, input);
        lines.number = blank_lines;
        Ok(Self::Lines(lines))
    }

    /// Bytes of the file read so far.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.bytes(),
            Self::Spread(spread) => spread.input.bytes(),
        }
    }
}

impl Iterator for Values {
    type Item = Result<(String, u64), SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines(lines) => loop {
                match lines.next()? {
                    Ok(line) if line.trim().is_empty() => {}
                    Ok(line) => return Some(Ok((line, lines.number))),
                    Err(error) => return Some(Err(error)),
                }
            },
            Self::Spread(spread) => spread.next().transpose(),
        }
    }
}

/// Cuts values out of a stream by their brackets; what is inside them is the parser's business.
pub(super) struct Spread {
    path: PathBuf,
    input: Input,
    line: u64,
    /// Where in the array, if it is one.
    array: Option<Place>,
}

/// A place in an array.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Begin,
    AfterValue,
    AfterComma,
    End,
}

impl Spread {
    fn next(&mut self) -> Result<Option<(String, u64)>, SourceError> {
        loop {
            let (next, lines) = skip_blank(&mut self.input.reader).map_err(|e| self.io(e))?;
            self.line += lines;
            let Some(byte) = next else {
                return match self.array {
                    None | Some(Place::End) => Ok(None),
                    Some(_) => Err(self.wrong("the file ends within its array")),
                };
            };
            match (self.array, byte) {
                (Some(Place::End), _) => return Err(self.wrong("something follows the array")),
                (Some(Place::Begin | Place::AfterValue), b']') => self.array = Some(Place::End),
                (Some(Place::AfterValue), b',') => self.array = Some(Place::AfterComma),
                (Some(Place::AfterValue), _) => return Err(self.wrong("expected `,` or `]`")),
                (Some(Place::AfterComma), b']' | b',') | (Some(Place::Begin), b',') => {
                    return Err(self.wrong("expected a value"));
                }
                _ => {
                    self.array = self.array.map(|_| Place::AfterValue);
                    return self.value().map(Some);
                }
            }
            self.input.reader.consume(1);
        }
    }

    /// The value that begins here: up to the bracket that closes its first, or to what ends a number or a word.
    fn value(&mut self) -> Result<(String, u64), SourceError> {
        let first_line = self.line;
        let mut value = Vec::new();
        let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
        let mut is_over = false;
        while !is_over {
            let buffer = match self.input.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.io(error)),
            };
            if buffer.is_empty() {
                break;
            }
            let mut taken = 0;
            for &byte in buffer {
                if !in_string && depth == 0 && matches!(byte, b',' | b']' | b'\n' | b' ') {
                    is_over = true;
                    break;
                }
                taken += 1;
                self.line += u64::from(byte == b'\n');
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' if in_string => is_escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' | b'[' if !in_string => depth += 1,
                    b'}' | b']' if !in_string => {
                        depth = depth.saturating_sub(1);
                        is_over = depth == 0;
                    }
                    _ => {}
                }
                if is_over {
                    break;
                }
            }
            value.extend_from_slice(&buffer[..taken]);
            self.input.reader.consume(taken);
            if value.len() as u64 > MAX_DOCUMENT_BYTES {
                return Err(SourceError::TooLong {
                    path: self.path.clone(),
                    line: first_line,
                });
            }
        }
        let text = String::from_utf8(value).map_err(|_| SourceError::NotUtf8 {
            path: self.path.clone(),
            line: first_line,
        })?;
        Ok((text, first_line))
    }

    fn io(&self, source: io::Error) -> SourceError {
        SourceError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn wrong(&self, reason: &str) -> SourceError {
        SourceError::Json {
            path: self.path.clone(),
            line: self.line,
            reason: reason.into(),
        }
    }
}

/// Passes over white space. The byte after it, which is not taken, and the lines that ended before it.
fn skip_blank(reader: &mut impl BufRead) -> io::Result<(Option<u8>, u64)> {
    let mut lines = 0;
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        if buffer.is_empty() {
            return Ok((None, lines));
        }
        let blank = buffer
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        lines += buffer[..blank]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count() as u64;
        let next = buffer.get(blank).copied();
        reader.consume(blank);
        if next.is_some() {
            return Ok((next, lines));
        }
    }
}
