//! Parquet files for tests.

use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Rows of a row group.
const GROUP_ROWS: usize = 100;

/// A parquet file of small row groups, with a column of numbers before that of the text, which may be null.
pub fn with_nulls(texts: &[Option<&[u8]>], properties: WriterProperties) -> Vec<u8> {
    written("OPTIONAL", texts, properties)
}

/// As [`with_nulls`], but without them.
pub fn without_nulls<T: AsRef<[u8]>>(texts: &[T], properties: WriterProperties) -> Vec<u8> {
    let texts: Vec<_> = texts.iter().map(|text| Some(text.as_ref())).collect();
    written("REQUIRED", &texts, properties)
}

fn written(repetition: &str, texts: &[Option<&[u8]>], properties: WriterProperties) -> Vec<u8> {
    let schema = format!(
        "message table {{ REQUIRED INT64 number; {repetition} BYTE_ARRAY text (STRING); }}"
    );
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, properties.into()).unwrap();
    for texts in texts.chunks(GROUP_ROWS) {
        let mut group = writer.next_row_group().unwrap();
        let numbers: Vec<i64> = (0..texts.len() as i64).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<Int64Type>();
        typed.write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();

        let values: Vec<ByteArray> = texts
            .iter()
            .flatten()
            .map(|text| text.to_vec().into())
            .collect();
        let levels: Vec<i16> = texts.iter().map(|text| text.is_some().into()).collect();
        let levels = (repetition == "OPTIONAL").then_some(levels.as_slice());
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&values, levels, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    file
}
