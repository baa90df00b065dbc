//! A file of lines that outlives a full disk: what cannot be written waits in memory until it can.

use std::io::{self, ErrorKind, Write};

/// Lines on their way to a file, oldest first.
pub(super) struct Lines<W> {
    file: W,
    waiting: Vec<u8>,
    /// Whether the user knows that lines wait.
    is_told: bool,
}

impl<W: Write> Lines<W> {
    /// Appends to `file`.
    pub(super) fn new(file: W) -> Self {
        Self {
            file,
            waiting: Vec::new(),
            is_told: false,
        }
    }

    /// Adds a line, and tries to write all that wait. The first time that this fails is a warning.
    pub(super) fn add(&mut self, line: &str) {
        self.waiting.extend_from_slice(line.as_bytes());
        self.waiting.push(b'\n');
        match self.flush() {
            Err(error) if !self.is_told => {
                tracing::warn!(%error, "metrics.jsonl cannot be written; its lines wait in memory until it can");
                self.is_told = true;
            }
            Err(_) => {}
            Ok(()) => self.is_told = false,
        }
    }

    /// Writes what waits. Whole lines go out in one write, so that whoever follows the file sees no half of one while there is room.
    ///
    /// # Errors
    /// What the system said; the rest still waits.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let written = match self.file.write(&self.waiting) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                result => result?,
            };
            self.waiting.drain(..written);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room.
    #[derive(Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.bytes.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_a_full_disk_come_later_and_whole() {
        let mut disk = Disk {
            room: 9,
            ..Disk::default()
        };
        let mut lines = Lines::new(&mut disk);
        for line in ["first", "second", "third"] {
            lines.add(line);
        }
        assert_eq!(lines.flush().unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(lines.file.bytes, b"first\nsec");
        lines.file.room = 100;
        lines.add("fourth");
        assert_eq!(disk.bytes, b"first\nsecond\nthird\nfourth\n");
    }
}
