//! Which column of a parquet file holds the text, and whether it is text at all.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use parquet::schema::types::{SchemaDescriptor, Type};

/// A column of text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Its index among the columns as they are stored, where the fields of a struct count one by one.
    pub(super) leaf: usize,
    /// Whether its rows may be null.
    pub(super) is_nullable: bool,
}

/// Why there is no such column.
#[derive(Debug)]
pub(super) enum NoText {
    /// None has that name.
    NoColumn {
        /// Those that there are.
        available: Vec<String>,
    },
    /// It holds something else.
    OtherType {
        /// What, for people.
        found: String,
    },
}

/// Looks for `name` among the columns of a table, which are the fields of its schema's root.
pub(super) fn find(schema: &SchemaDescriptor, name: &str) -> Result<Column, NoText> {
    let fields = schema.root_schema().get_fields();
    let Some(root) = fields.iter().position(|field| field.name() == name) else {
        return Err(NoText::NoColumn {
            available: fields.iter().map(|field| field.name().to_owned()).collect(),
        });
    };
    let leaf = (0..schema.num_columns()).find(|&leaf| schema.get_column_root_idx(leaf) == root);
    match leaf {
        Some(leaf) if is_text(&fields[root]) => Ok(Column {
            leaf,
            is_nullable: fields[root].is_optional(),
        }),
        _ => Err(NoText::OtherType {
            found: described(&fields[root]),
        }),
    }
}

/// Whether the bytes are said to be text. Bytes of which nothing is said are not: they could be anything.
fn is_text(field: &Type) -> bool {
    if !field.is_primitive() || field.get_physical_type() != PhysicalType::BYTE_ARRAY {
        return false;
    }
    let info = field.get_basic_info();
    let is_text = match info.logical_type_ref() {
        Some(logical) => matches!(logical, LogicalType::String | LogicalType::Json),
        // Files of before 2018 have this instead.
        None => matches!(
            info.converted_type(),
            ConvertedType::UTF8 | ConvertedType::JSON
        ),
    };
    is_text && repetition(field) != Repetition::REPEATED
}

fn repetition(field: &Type) -> Repetition {
    let info = field.get_basic_info();
    match info.has_repetition() {
        true => info.repetition(),
        false => Repetition::REQUIRED,
    }
}

/// What a column holds, such as `Int64`, `Int64 (Timestamp)` or `List`.
fn described(field: &Type) -> String {
    let info = field.get_basic_info();
    // The annotation's name without its parameters.
    let annotation = match (info.logical_type_ref(), info.converted_type()) {
        (Some(logical), _) => format!("{logical:?}")
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect(),
        (None, ConvertedType::NONE) => String::new(),
        (None, converted) => converted.to_string(),
    };
    let kind = if field.is_primitive() {
        let physical = match field.get_physical_type() {
            PhysicalType::BOOLEAN => "Boolean",
            PhysicalType::INT32 => "Int32",
            PhysicalType::INT64 => "Int64",
            PhysicalType::INT96 => "Int96",
            PhysicalType::FLOAT => "Float32",
            PhysicalType::DOUBLE => "Float64",
            PhysicalType::BYTE_ARRAY => "Binary",
            PhysicalType::FIXED_LEN_BYTE_ARRAY => "FixedSizeBinary",
        };
        match annotation.as_str() {
            "" => physical.to_owned(),
            _ => format!("{physical} ({annotation})"),
        }
    } else if annotation.is_empty() {
        "Struct".to_owned()
    } else {
        annotation
    };
    match repetition(field) {
        Repetition::REPEATED => format!("a list of {kind}"),
        _ => kind,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn found(schema: &str) -> Result<Column, NoText> {
        let schema = parse_message_type(&format!("message table {{ {schema} }}")).unwrap();
        find(&SchemaDescriptor::new(Arc::new(schema)), "text")
    }

    #[test]
    fn text_is_what_is_said_to_be_text() {
        for annotation in ["(STRING)", "(UTF8)", "(JSON)"] {
            let column = found(&format!("REQUIRED BYTE_ARRAY text {annotation};")).unwrap();
            assert!(column.leaf == 0 && !column.is_nullable, "{annotation}");
        }
        let behind_others = "REQUIRED group before { REQUIRED INT32 text; OPTIONAL INT32 b; } \
                             OPTIONAL BYTE_ARRAY text (UTF8);";
        let column = found(behind_others).unwrap();
        assert!(column.leaf == 2 && column.is_nullable, "{column:?}");
    }

    #[test]
    fn anything_else_is_described() {
        for (schema, expected) in [
            ("OPTIONAL BYTE_ARRAY text;", "Binary"),
            ("REQUIRED BYTE_ARRAY text (ENUM);", "Binary (Enum)"),
            ("REQUIRED BYTE_ARRAY text (BSON);", "Binary (Bson)"),
            ("REQUIRED FIXED_LEN_BYTE_ARRAY (4) text;", "FixedSizeBinary"),
            ("REQUIRED DOUBLE text;", "Float64"),
            (
                "REQUIRED INT64 text (TIMESTAMP_MILLIS);",
                "Int64 (TIMESTAMP_MILLIS)",
            ),
            (
                "REQUIRED INT64 text (TIMESTAMP(NANOS,true));",
                "Int64 (Timestamp)",
            ),
            (
                "REPEATED BYTE_ARRAY text (UTF8);",
                "a list of Binary (UTF8)",
            ),
            (
                "REQUIRED group text { REQUIRED BYTE_ARRAY text (UTF8); }",
                "Struct",
            ),
            (
                "OPTIONAL group text (LIST) { REPEATED group list { OPTIONAL BYTE_ARRAY element (UTF8); } }",
                "List",
            ),
        ] {
            match found(schema) {
                Err(NoText::OtherType { found }) => assert_eq!(found, expected, "{schema}"),
                other => panic!("{schema}: {other:?}"),
            }
        }
        match found(
            "REQUIRED BYTE_ARRAY body (UTF8); REQUIRED group meta { REQUIRED BYTE_ARRAY text (UTF8); }",
        ) {
            Err(NoText::NoColumn { available }) => assert_eq!(available, ["body", "meta"]),
            other => panic!("{other:?}"),
        }
    }
}
