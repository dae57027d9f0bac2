//! Reads a byte slice from front to back; every length is checked against what is left before it is used. Knows
//! little-endian numbers and GGUF's strings, no fields.

/// A position in a header.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Why a read failed: what was wanted, and what would have been in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub value: String,
    pub expected: String,
}

impl Problem {
    #[allow(clippy::needless_pass_by_value)] // messages are made in place
    pub fn new(value: impl ToString, expected: impl ToString) -> Self {
        Self { value: value.to_string(), expected: expected.to_string() }
    }
}

type Result<T> = std::result::Result<T, Problem>;

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        match usize::try_from(len).ok().filter(|len| *len <= self.left()) {
            Some(len) => {
                let part = &self.bytes[self.at..self.at + len];
                self.at += len;
                Ok(part)
            }
            None => Err(Problem::new(
                format_args!("{len} bytes at offset {}", self.at),
                format_args!("at most the {} bytes left of the file", self.left()),
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `size` bytes each, so that a count from a file bounds nothing but by what
    /// the file can hold.
    pub fn count(&mut self, limit: u64, size: u64) -> Result<usize> {
        let count = self.u64()?;
        let limit = limit.min(self.left() as u64 / size);
        if count > limit {
            return Err(Problem::new(count, format_args!("at most {limit}, by what is left of the file")));
        }
        Ok(count as usize)
    }

    /// A string: its length as u64, then its bytes, which need not be UTF-8.
    pub fn text(&mut self, limit: u64) -> Result<&'a [u8]> {
        let len = self.u64()?;
        if len > limit {
            return Err(Problem::new(format_args!("{len} bytes of text"), format_args!("at most {limit}")));
        }
        self.take(len)
    }
}
