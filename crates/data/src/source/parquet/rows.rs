//! Some columns of a parquet file, lists and structs included, as objects of JSON: conversations are stored so.

use std::fs::File;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};

/// Goes through the rows of a file.
pub(super) struct Objects(RowIter<'static>);

impl Objects {
    /// Of these columns, those that there are.
    pub(super) fn open(
        file: SerializedFileReader<File>,
        columns: &[&str],
    ) -> Result<Self, ParquetError> {
        let schema = file.metadata().file_metadata().schema_descr();
        let root = schema.root_schema();
        let fields: Vec<Arc<Type>> = root
            .get_fields()
            .iter()
            .filter(|field| columns.contains(&field.name()))
            .cloned()
            .collect();
        let projection = Type::group_type_builder(root.name())
            .with_fields(fields)
            .build()?;
        let rows = RowIter::from_file_into(Box::new(file)).project(Some(projection))?;
        Ok(Self(rows))
    }

    /// The next rows, at most `count`; none at the end of the file.
    pub(super) fn next_batch(&mut self, count: usize) -> Result<Vec<String>, ParquetError> {
        let rows = self.0.by_ref().take(count);
        rows.map(|row| {
            let text = serde_json::to_string(&Object(&row?));
            text.map_err(|error| ParquetError::General(error.to_string()))
        })
        .collect()
    }
}

/// A row with its columns in their order.
struct Object<'a>(&'a Row);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, field) in self.0.get_column_iter() {
            map.serialize_entry(name, &Value(field))?;
        }
        map.end()
    }
}

struct Value<'a>(&'a Field);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Field::Null => serializer.serialize_none(),
            Field::Bool(value) => serializer.serialize_bool(*value),
            Field::Byte(value) => serializer.serialize_i8(*value),
            Field::Short(value) => serializer.serialize_i16(*value),
            Field::Int(value) => serializer.serialize_i32(*value),
            Field::Long(value) => serializer.serialize_i64(*value),
            Field::UByte(value) => serializer.serialize_u8(*value),
            Field::UShort(value) => serializer.serialize_u16(*value),
            Field::UInt(value) => serializer.serialize_u32(*value),
            Field::ULong(value) => serializer.serialize_u64(*value),
            Field::Float(value) => serializer.serialize_f32(*value),
            Field::Double(value) => serializer.serialize_f64(*value),
            Field::Str(text) => serializer.serialize_str(text),
            Field::Group(row) => Object(row).serialize(serializer),
            Field::ListInternal(list) => serializer.collect_seq(list.elements().iter().map(Value)),
            Field::MapInternal(map) => {
                let mut out = serializer.serialize_map(Some(map.len()))?;
                for (key, value) in map.entries() {
                    out.serialize_entry(&Value(key), &Value(value))?;
                }
                out.end()
            }
            other => Err(S::Error::custom(format!(
                "{other} stands where text or a list should"
            ))),
        }
    }
}
