//! What of a row is a document.

/// What of a row is a document.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// The text of this column.
    Text(&'a str),
    /// Those of these columns that there are, as an object of JSON.
    Row(&'static [&'static str]),
}
