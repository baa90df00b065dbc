//! `tandem data`: what a model sees of a dataset.

use std::io::{IsTerminal, stdout};

use clap::{Args, Subcommand};
use tandem_launch::{exit_code, say};
use tandem_run::failure::{Failure, Outcome};
use tandem_run::preview::Preview;

use crate::flags::data::DataFlags;

/// Look at data before training on them.
#[derive(Debug, Clone, Subcommand)]
pub enum DataCommand {
    Preview(PreviewArgs),
}

/// Show rows as the model sees them: which tokens are trained, how much is padding, how long documents are.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct PreviewArgs {
    /// A folder with a tokenizer, or a model on the hub.
    #[arg(long)]
    pub model_name: String,

    /// Rows to show: 3, or all with --json.
    #[arg(long, value_name = "N")]
    pub rows: Option<u64>,

    /// A line of JSON for each row: row, input_ids, labels, position_ids, document_ids.
    #[arg(long)]
    pub json: bool,

    /// With --json, a line for each document instead, before packing and cutting: document, input_ids, labels; or document,
    /// error.
    #[arg(long, requires = "json")]
    pub documents: bool,

    #[command(flatten)]
    pub data: DataFlags,
}

/// Prints to standard output.
pub fn run(command: &DataCommand) -> Outcome<i32> {
    let DataCommand::Preview(args) = command;
    if args.data.seq_length < 2 {
        return Err(Failure::usage("--seq_length must be at least 2"));
    }
    let data = args.data.to_spec();
    let preview = Preview::new(&data, &args.model_name)?;
    let mut lines = |line: &str| say!("{line}").map_err(Failure::from);
    match (args.json, args.documents) {
        (true, true) => preview.documents(&mut lines)?,
        (true, false) => preview.rows(args.rows, &mut lines)?,
        (false, _) => preview.text(args.rows.unwrap_or(3), stdout().is_terminal(), &mut lines)?,
    }
    Ok(exit_code::OK)
}
