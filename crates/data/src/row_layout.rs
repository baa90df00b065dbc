//! How documents become rows. Names are those of TRL's `SFTConfig`.

/// What happens to several documents that fit into a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// All documents are one stream of tokens, which is cut into rows: every row is full, and documents are cut wherever a row
    /// ends.
    Wrapped,
    /// Best-fit decreasing: whole documents, the longest first, each into the row that it fills best. What of a document is
    /// beyond a row is left out.
    BestFit,
    /// The same, but documents that are longer than a row are cut into pieces of that length, and all pieces are packed.
    BestFitSplit,
}

impl Packing {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::BestFit => "bfd",
            Self::BestFitSplit => "bfd_split",
        }
    }
}

/// How documents become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    /// `None`: one document a row.
    pub packing: Option<Packing>,
    /// Whether documents of one row do not see each other: then no token is a target that another document would predict.
    pub document_mask: bool,
}

impl RowLayout {
    /// One document a row.
    #[cfg(test)]
    pub(crate) const PADDED: Self = Self {
        packing: None,
        document_mask: false,
    };
    /// One stream, cut into rows in which documents see each other.
    pub const WRAPPED: Self = Self {
        packing: Some(Packing::Wrapped),
        document_mask: false,
    };
}
