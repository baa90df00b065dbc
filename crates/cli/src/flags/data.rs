//! The flags about data, which training and `tandem data` share.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use tandem_run::spec::{Data, ExampleKind};

use crate::flags::choices::{DatasetFormat, PackingStrategy};

/// What the rows are made of.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct DataFlags {
    /// Tokens per row.
    #[arg(long, default_value_t = 2048, help_heading = "Batch")]
    pub seq_length: usize,

    /// true: several documents a row, as --packing_strategy says; false: one document a row, truncated or padded. Without the
    /// flag, text is packed, and conversations and completions are not.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Batch")]
    pub packing: Option<bool>,

    /// How documents are packed; names as TRL has them. Without the flag, text is wrapped, and conversations and completions
    /// are packed by bfd.
    #[arg(long, value_enum, value_name = "STRATEGY", help_heading = "Batch")]
    pub packing_strategy: Option<PackingStrategy>,

    /// Whether documents in a row do not see each other. Without the flag, all but text that is wrapped do not.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Batch")]
    pub document_mask: Option<bool>,

    /// A hub name (`wikitext` is Salesforce/wikitext), a folder, a file, or a list of files and patterns with commas
    /// between them. Files are .txt, .jsonl, .ndjson, .json, .csv, .tsv (also with .gz or .zst after it) or .parquet. Several of
    /// these flags are a mixture: all rows of each, or, with NAME@WEIGHT, rows in proportion to the weights.
    #[arg(
        long,
        default_value = "wikitext",
        value_name = "NAME[@WEIGHT]",
        help_heading = "Data"
    )]
    pub dataset_name: Vec<String>,

    /// The dataset's configuration on the hub, or a folder in a folder; `all`: all of them. wikitext's default is
    /// wikitext-2-raw-v1.
    #[arg(long, help_heading = "Data")]
    pub dataset_config: Option<String>,

    /// The dataset's split.
    #[arg(long, default_value = "train", help_heading = "Data")]
    pub dataset_split: String,

    /// Use the first so many percent of the documents.
    #[arg(long, default_value_t = 100.0, help_heading = "Data")]
    pub dataset_percentage: f64,

    /// What the rows are.
    #[arg(long, value_enum, default_value_t = DatasetFormat::Auto, help_heading = "Data")]
    pub dataset_format: DatasetFormat,

    /// The column that holds the text.
    #[arg(long, default_value = "text", help_heading = "Data")]
    pub text_column: String,

    /// Of prompts with completions, train the completions alone.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set, help_heading = "Data")]
    pub completion_only_loss: bool,

    /// Of conversations, train what the assistant says alone: what the chat template has between {% generation %} and
    /// {% endgeneration %}; of one without these, what each answer adds to the text before it.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Data")]
    pub assistant_only_loss: bool,

    /// A file with a chat template (Jinja) instead of the tokenizer's own.
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub chat_template_path: Option<PathBuf>,

    /// The token that ends a document, instead of the tokenizer's own.
    #[arg(long, value_name = "TOKEN", help_heading = "Data")]
    pub eos_token: Option<String>,
}

impl DataFlags {
    /// Their section of the spec.
    pub fn to_spec(&self) -> Data {
        Data {
            dataset_name: self.dataset_name.clone(),
            dataset_config: self.dataset_config.clone(),
            dataset_split: self.dataset_split.clone(),
            dataset_percentage: self.dataset_percentage,
            dataset_format: Option::<ExampleKind>::from(self.dataset_format),
            text_column: self.text_column.clone(),
            completion_only_loss: self.completion_only_loss,
            assistant_only_loss: self.assistant_only_loss,
            chat_template_path: self.chat_template_path.clone(),
            eos_token: self.eos_token.clone(),
            packing: self.packing,
            packing_strategy: self.packing_strategy.map(Into::into),
            document_mask: self.document_mask,
            seq_length: self.seq_length,
        }
    }
}
