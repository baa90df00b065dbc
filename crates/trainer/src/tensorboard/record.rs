//! TensorFlow's record format: a length, its sum, the data, their sum; all little-endian.

use std::fs::File;
use std::io::{self, BufReader, Read};

/// Longer events are not ours.
const LONGEST: u64 = 1 << 20;

/// CRC-32C of every byte, reflected.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ if value & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
};

/// CRC-32C, masked as TensorFlow does it, so that a sum over data that hold sums says something.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)]
    });
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Adds `data` as one record.
pub(super) fn append(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
}

/// Reads records up to the first that is cut off or damaged.
pub(super) struct Reader<'a> {
    file: BufReader<&'a File>,
    length: u64,
    position: u64,
}

impl<'a> Reader<'a> {
    /// From the beginning of `file`.
    pub fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self {
            length: file.metadata()?.len(),
            file: BufReader::new(file),
            position: 0,
        })
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Where the last record ended.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next record's data.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 12];
        let left = self.length - self.position;
        if left < head.len() as u64 {
            return Ok(None);
        }
        self.file.read_exact(&mut head)?;
        let (length, sum) = head.split_at(8);
        if sum != masked_crc(length).to_le_bytes() {
            return Ok(None);
        }
        let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
        if length > LONGEST.min(left.saturating_sub(16)) {
            return Ok(None);
        }
        let mut data = vec![0; length as usize + 4];
        self.file.read_exact(&mut data)?;
        let sum = data.split_off(length as usize);
        if sum != masked_crc(&data).to_le_bytes() {
            return Ok(None);
        }
        self.position += length + 16;
        Ok(Some(data))
    }
}
