//! How far the tensors of a replay are from what they should be: one pass over the files, a piece of a tensor at a time.

use std::ops::Range;

use tandem_run::failure::Outcome;

use super::tensors::Tensors;

/// Elements of a tensor that are in memory at a time.
const PIECE: usize = 1 << 20;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// What the replay computed.
    pub candidate: &'a Tensors,
    /// What PyTorch computed in the case's own kind of numbers.
    pub recorded: &'a Tensors,
    /// What PyTorch computed in float64, where the case has that. Both of the others are then held against it, else the
    /// replay against the recording.
    pub float64: Option<&'a Tensors>,
}

/// How far one tensor is from another of its shape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Distance {
    /// The sum of squared differences.
    pub squares: f64,
    /// The largest difference.
    pub largest: f64,
}

/// A tensor, or a part of one.
#[derive(Debug, Clone)]
pub struct Compared {
    /// Its name, or what is wrong with it.
    pub name: String,
    /// The replay's distance from the reference.
    pub replay: Distance,
    /// That of PyTorch's recording, where the reference is float64.
    pub pytorch: Option<Distance>,
    /// The sum of squares of the reference or, where a start was given, of its difference from that.
    pub squares: f64,
}

impl Distance {
    /// Of a tensor that is not there, or is another one.
    const INFINITE: Self = Self {
        squares: f64::INFINITY,
        largest: f64::INFINITY,
    };

    fn add(&mut self, a: &[f64], b: &[f64]) {
        for (a, b) in a.iter().zip(b) {
            let difference = (a - b).abs();
            self.squares += difference * difference;
            // A maximum would pass over what is no number.
            if difference.is_nan() || difference > self.largest {
                self.largest = difference;
            }
        }
    }
}

impl Sources<'_> {
    /// Every tensor of the recording; `start` is where training began.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn compare(&self, start: Option<&Tensors>) -> Outcome<Vec<Compared>> {
        let names = self.recorded.names().into_iter();
        names
            .map(|name| match self.elements(name, start) {
                Ok(elements) => self.part(name, name, 0..elements, start),
                Err(problem) => Ok(lost(problem)),
            })
            .collect()
    }

    /// Every row of the tensor `name`, of which there are as many as `wanted` has flags, where the flag is set.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn rows(&self, name: &str, wanted: &[bool]) -> Outcome<Vec<Compared>> {
        let elements = match self.elements(name, None) {
            Ok(elements) if elements.is_multiple_of(wanted.len().max(1)) => elements,
            Ok(elements) => {
                let problem = format!("{name}: {elements} elements in {} rows", wanted.len());
                return Ok(vec![lost(problem)]);
            }
            Err(problem) => return Ok(vec![lost(problem)]),
        };
        let width = elements / wanted.len().max(1);
        let kept = (0..wanted.len()).filter(|&row| wanted[row]);
        kept.map(|row| {
            let title = format!("position {row}");
            self.part(&title, name, row * width..(row + 1) * width, None)
        })
        .collect()
    }

    /// How many elements all have of the tensor `name`, or what is wrong.
    fn elements(&self, name: &str, start: Option<&Tensors>) -> Result<usize, String> {
        let expected = self.recorded.elements(name);
        let expected = expected.ok_or_else(|| format!("{name} is missing in the recording"))?;
        for (tensors, place) in [
            (Some(self.candidate), "the replay"),
            (self.float64, "float64"),
            (start, "the weights"),
        ] {
            match tensors.map(|tensors| tensors.elements(name)) {
                Some(None) => return Err(format!("{name} is missing in {place}")),
                Some(Some(found)) if found != expected => {
                    return Err(format!(
                        "{name} has {found} elements in {place}, not {expected}"
                    ));
                }
                _ => {}
            }
        }
        Ok(expected)
    }

    /// The elements `range` of the tensor `name`, as `title`.
    fn part(
        &self,
        title: &str,
        name: &str,
        range: Range<usize>,
        start: Option<&Tensors>,
    ) -> Outcome<Compared> {
        let mut replay = Distance::default();
        let mut pytorch = self.float64.map(|_| Distance::default());
        let mut length = Distance::default();
        for first in range.clone().step_by(PIECE) {
            let piece = first..range.end.min(first + PIECE);
            let read = |tensors: &Tensors| tensors.read(name, piece.clone());
            let recorded = read(self.recorded)?;
            let float64 = self.float64.map(read).transpose()?;
            let reference = float64.as_ref().unwrap_or(&recorded);
            replay.add(&read(self.candidate)?, reference);
            if let Some(pytorch) = &mut pytorch {
                pytorch.add(&recorded, reference);
            }
            match start {
                Some(start) => length.add(reference, &read(start)?),
                None => length.add(reference, &vec![0.0; reference.len()]),
            }
        }
        Ok(Compared {
            name: title.to_owned(),
            replay,
            pytorch,
            squares: length.squares,
        })
    }
}

/// In the place of a comparison that cannot be made: it meets no tolerance, and allows none.
fn lost(problem: String) -> Compared {
    Compared {
        name: problem,
        replay: Distance::INFINITE,
        pytorch: None,
        squares: 1.0,
    }
}
