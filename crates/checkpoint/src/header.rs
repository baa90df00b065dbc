//! The header of a safetensors file, read with distrust.
//!
//! Format: 8 bytes with the little-endian length of the header, the header as JSON, then the tensors' bytes without holes
//! (<https://github.com/huggingface/safetensors#format>). The `safetensors` crate checks the same, but its errors do not name
//! the tensor, and of two tensors with one name it silently takes the last.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serializer};
use thiserror::Error;

/// Bytes of the length that precedes the header.
pub(crate) const LENGTH_BYTES: usize = 8;

/// The format's own limit; it keeps a corrupt length from being allocated.
const MAX_HEADER_BYTES: u64 = 100_000_000;

const METADATA_KEY: &str = "__metadata__";

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Kind of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file.
    pub bytes: Range<u64>,
}

/// What a file holds, in the order of its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The tensors.
    pub entries: Vec<Entry>,
}

/// Why a header cannot be believed.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// Not even the length is there.
    #[error("the file has only {size} bytes, too few for a safetensors file: it was cut short")]
    TooShort {
        /// Bytes of the file.
        size: u64,
    },
    /// The header would end behind the file's end.
    #[error(
        "its header should have {header} bytes but the file has {size}: it was cut short, or is not a safetensors file"
    )]
    HeaderBeyondFile {
        /// Bytes that the header should have.
        header: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// The header is larger than the format allows.
    #[error(
        "its header should have {header} bytes, more than the format allows: this is not a safetensors file"
    )]
    HeaderTooLarge {
        /// Bytes that the header should have.
        header: u64,
    },
    /// The header is not what the format says.
    #[error("its header is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A name appears twice.
    #[error("tensor {tensor:?} appears twice")]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// The bytes of a tensor do not begin where those of the one before end.
    #[error("tensor {tensor:?} begins at byte {found} of the data, but the one before it ends at {expected}: {}",
        if found < expected { "they overlap" } else { "there is a hole" })]
    NotAdjacent {
        /// The tensor.
        tensor: String,
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// Shape and kind do not agree with the number of bytes.
    #[error("tensor {tensor:?} of kind {dtype} and shape {shape:?} cannot have {bytes} bytes")]
    WrongSize {
        /// The tensor.
        tensor: String,
        /// Its kind.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that it claims.
        bytes: u64,
    },
    /// A tensor ends before it begins.
    #[error("tensor {tensor:?} ends at byte {end}, before its begin at {begin}")]
    Backwards {
        /// The tensor.
        tensor: String,
        /// First byte.
        begin: u64,
        /// Byte behind the last.
        end: u64,
    },
    /// A tensor ends behind the file's end.
    #[error("tensor {tensor:?} ends at byte {end} but the file has only {size}: it was cut short")]
    BeyondFile {
        /// The tensor.
        tensor: String,
        /// Byte of the file behind its last.
        end: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("{extra} bytes behind the last tensor belong to none")]
    Trailing {
        /// How many.
        extra: u64,
    },
}

impl Header {
    /// The header's length from the file's first eight bytes, believed only as far as the file's size allows.
    pub(crate) fn length(first: [u8; LENGTH_BYTES], file_size: u64) -> Result<usize, HeaderError> {
        let header = u64::from_le_bytes(first);
        if header > MAX_HEADER_BYTES {
            return Err(HeaderError::HeaderTooLarge { header });
        }
        if header + LENGTH_BYTES as u64 > file_size {
            return Err(HeaderError::HeaderBeyondFile {
                header,
                size: file_size,
            });
        }
        Ok(header as usize)
    }

    /// Reads the JSON part and holds it against the file's size: the tensors must fill the file, each with the bytes
    /// that its shape needs.
    pub(crate) fn parse(json: &[u8], file_size: u64) -> Result<Self, HeaderError> {
        let RawHeader(mut raw) = serde_json::from_slice(json)?;
        let mut names = HashSet::with_capacity(raw.len());
        if let Some((tensor, _)) = raw.iter().find(|(name, _)| !names.insert(name.as_str())) {
            return Err(HeaderError::Duplicate {
                tensor: tensor.clone(),
            });
        }
        raw.sort_by_key(|(_, info)| info.data_offsets);

        let data_start = (LENGTH_BYTES + json.len()) as u64;
        let mut expected = 0;
        let mut entries = Vec::with_capacity(raw.len());
        for (tensor, info) in raw {
            let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            if end < begin {
                return Err(HeaderError::Backwards { tensor, begin, end });
            }
            if begin != expected {
                return Err(HeaderError::NotAdjacent {
                    tensor,
                    expected,
                    found: begin,
                });
            }
            if bytes_of(info.dtype, &info.shape) != Some(end - begin) {
                return Err(HeaderError::WrongSize {
                    tensor,
                    dtype: info.dtype,
                    shape: info.shape,
                    bytes: end - begin,
                });
            }
            let last = data_start.saturating_add(end);
            if last > file_size {
                return Err(HeaderError::BeyondFile {
                    tensor,
                    end: last,
                    size: file_size,
                });
            }
            expected = end;
            entries.push(Entry {
                name: tensor,
                dtype: info.dtype,
                shape: info.shape,
                bytes: data_start + begin..last,
            });
        }
        let extra = file_size - (data_start + expected);
        if extra > 0 {
            return Err(HeaderError::Trailing { extra });
        }
        Ok(Self { entries })
    }

    /// The first bytes of a file that holds `tensors` (name, kind, shape) in this order, with the header that says so.
    pub(crate) fn encode<'a>(
        tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
    ) -> Result<(Vec<u8>, Self), HeaderError> {
        let mut offset = 0;
        let mut entries = Vec::new();
        for (name, dtype, shape) in tensors {
            let Some(size) = bytes_of(dtype, shape) else {
                return Err(HeaderError::WrongSize {
                    tensor: name.to_owned(),
                    dtype,
                    shape: shape.to_vec(),
                    bytes: 0,
                });
            };
            entries.push(Entry {
                name: name.to_owned(),
                dtype,
                shape: shape.to_vec(),
                bytes: offset..offset + size,
            });
            offset += size;
        }
        let mut json = serialize(&entries)?;
        // Data that begins at a multiple of eight can be mapped and used in place.
        json.resize(json.len().next_multiple_of(8), b' ');
        if json.len() as u64 > MAX_HEADER_BYTES {
            return Err(HeaderError::HeaderTooLarge {
                header: json.len() as u64,
            });
        }
        let mut first = (json.len() as u64).to_le_bytes().to_vec();
        first.append(&mut json);
        let data_start = first.len() as u64;
        for entry in &mut entries {
            entry.bytes = entry.bytes.start + data_start..entry.bytes.end + data_start;
        }
        Ok((first, Self { entries }))
    }
}

/// JSON with the tensors in the order of their bytes, and the mark by which transformers knows the layout (`[out, in]`).
fn serialize(entries: &[Entry]) -> Result<Vec<u8>, serde_json::Error> {
    use serde::ser::SerializeMap;
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    let mut map = serializer.serialize_map(Some(entries.len() + 1))?;
    map.serialize_entry(
        METADATA_KEY,
        &std::collections::BTreeMap::from([("format", "pt")]),
    )?;
    for entry in entries {
        let info = TensorInfo {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data_offsets: (entry.bytes.start as usize, entry.bytes.end as usize),
        };
        map.serialize_entry(&entry.name, &info)?;
    }
    map.end()?;
    Ok(json)
}

fn bytes_of(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape
        .iter()
        .try_fold(1u64, |product, &extent| product.checked_mul(extent as u64))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The JSON object as a list, so that a name that appears twice is still seen twice.
struct RawHeader(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let info = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
                    entries.push((name, info));
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data: u64) -> Result<Header, String> {
        let size = (LENGTH_BYTES + json.len()) as u64 + data;
        Header::parse(json.as_bytes(), size).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_encoded_is_parsed() {
        let tensors: [(&str, Dtype, &[usize]); 3] = [
            ("b", Dtype::BF16, &[3, 5]),
            ("a", Dtype::F32, &[]),
            ("empty", Dtype::F32, &[0, 7]),
        ];
        let (first, written) = Header::encode(tensors).unwrap();
        let size = first.len() as u64 + 34;
        let length = Header::length(first[..8].try_into().unwrap(), size).unwrap();
        assert_eq!(length + 8, first.len());
        let read = Header::parse(&first[8..], size).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.entries[1].bytes, size - 4..size);
    }

    #[test]
    fn what_does_not_add_up_is_refused_by_name() {
        let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let b = |begin, end| {
            format!(r#"{{{a},"b":{{"dtype":"F32","shape":[2],"data_offsets":[{begin},{end}]}}}}"#)
        };
        assert!(parse(&b(8, 16), 16).is_ok());
        for (json, data, says) in [
            (
                b(4, 12),
                12,
                "\"b\" begins at byte 4 of the data, but the one before it ends at 8: they overlap",
            ),
            (b(12, 20), 20, "there is a hole"),
            (
                b(8, 12),
                12,
                "\"b\" of kind F32 and shape [2] cannot have 4 bytes",
            ),
            (b(8, 16), 12, "\"b\" ends at byte"),
            (b(8, 16), 20, "4 bytes behind the last tensor"),
            (b(16, 8), 16, "before its begin"),
            (format!("{{{a},{a}}}"), 8, "\"a\" appears twice"),
            (
                r#"{"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}"#.into(),
                8,
                "tensor \"a\"",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#.into(),
                8,
                "tensor \"a\"",
            ),
            ("[]".into(), 0, "not valid"),
            ("{".into(), 0, "not valid"),
            (
                r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#
                    .into(),
                0,
                "cannot have 0 bytes",
            ),
        ] {
            let error = parse(&json, data).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
        assert!(matches!(
            Header::length(u64::MAX.to_le_bytes(), 100),
            Err(HeaderError::HeaderTooLarge { .. })
        ));
        assert!(matches!(
            Header::length(93u64.to_le_bytes(), 100),
            Err(HeaderError::HeaderBeyondFile { .. })
        ));
    }
}
