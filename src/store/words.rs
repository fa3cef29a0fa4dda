//! What goes to a script and what comes back: keys, arguments and replies, as words in a row.

use redis::{RedisWrite, ToRedisArgs, Value};

use super::StoreError;
use super::keys::{Key, Keys};
use crate::ledger::call::LastRead;

/// The keys and arguments of a call, in the order of the script's header.
#[derive(Default)]
pub struct Input {
    pub keys: Words,
    pub arguments: Words,
}

impl Input {
    pub fn key(&mut self, keys: &Keys, key: Key) {
        keys.write(key, &mut self.keys.text);
        self.keys.end();
    }

    pub fn text(&mut self, text: impl AsRef<[u8]>) {
        self.arguments.text.extend_from_slice(text.as_ref());
        self.arguments.end();
    }

    pub fn last_read(&mut self, last: Option<LastRead>) {
        self.text(last.map(|last| last.anchor.to_string()).unwrap_or_default());
        self.text(last.map(|last| last.reached_ms.to_string()).unwrap_or_default());
    }

    pub fn number(&mut self, number: impl itoa::Integer) {
        self.text(itoa::Buffer::new().format(number));
    }
}

/// A value in MessagePack, which a script takes apart in one go: thousands of arguments would cost more than what is
/// done with them.
#[derive(Default)]
pub struct Packed {
    bytes: Vec<u8>,
}

impl Packed {
    /// Goes on behind what was written already.
    pub fn behind(bytes: Vec<u8>) -> Packed {
        Packed { bytes }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A list; its values follow.
    pub fn list(&mut self, values: usize) {
        match values {
            0..16 => self.bytes.push(0x90 | values as u8),
            16..0x1_0000 => self.head(0xdc, &(values as u16).to_be_bytes()),
            _ => self.head(0xdd, &u32::try_from(values).expect("a list fits into memory").to_be_bytes()),
        }
    }

    pub fn text(&mut self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        match text.len() {
            0..32 => self.bytes.push(0xa0 | text.len() as u8),
            32..0x1_0000 => self.head(0xda, &(text.len() as u16).to_be_bytes()),
            _ => self.head(0xdb, &u32::try_from(text.len()).expect("a text fits into memory").to_be_bytes()),
        }
        self.bytes.extend_from_slice(text);
    }

    /// An amount, a time or an identity: as text, since numbers in Lua end at 2^53.
    pub fn decimal(&mut self, number: impl itoa::Integer) {
        self.text(itoa::Buffer::new().format(number));
    }

    /// An index from 1, a count, or an amount below 2^53.
    pub fn number(&mut self, number: usize) {
        match number {
            0..0x80 => self.bytes.push(number as u8),
            0x80..0x1_0000 => self.head(0xcd, &(number as u16).to_be_bytes()),
            0x1_0000..0x1_0000_0000 => self.head(0xce, &(number as u32).to_be_bytes()),
            _ => self.head(0xcf, &(number as u64).to_be_bytes()),
        }
    }

    /// The place of an item in a list.
    pub fn index(&mut self, index: usize) {
        self.number(index + 1);
    }

    fn head(&mut self, kind: u8, size: &[u8]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(size);
    }
}

/// Words in one piece of memory: a call has thousands, and one allocation each would cost more than writing them.
#[derive(Default)]
pub struct Words {
    pub text: Vec<u8>,
    ends: Vec<usize>,
}

impl Words {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn first(&self) -> Option<&[u8]> {
        self.ends.first().map(|end| &self.text[..*end])
    }

    /// What was written since the last end is a word.
    pub fn end(&mut self) {
        self.ends.push(self.text.len());
    }
}

impl<W: AsRef<[u8]>> FromIterator<W> for Words {
    fn from_iter<I: IntoIterator<Item = W>>(each: I) -> Words {
        let mut words = Words::default();
        for word in each {
            words.text.extend_from_slice(word.as_ref());
            words.end();
        }
        words
    }
}

impl ToRedisArgs for Words {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut start = 0;
        for &end in &self.ends {
            out.write_arg(&self.text[start..end]);
            start = end;
        }
    }

    fn num_of_args(&self) -> usize {
        self.len()
    }
}

/// The strings of a script's reply, in order.
pub struct Fields(std::vec::IntoIter<Value>);

impl Fields {
    pub fn of(reply: Value) -> Fields {
        match reply {
            Value::Array(values) => Fields(values.into_iter()),
            single => Fields(vec![single].into_iter()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            other => Err(StoreError::Broken(format!("a script's reply has {other:?} where a string is due"))),
        }
    }

    pub fn text(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.bytes()?).map_err(|error| StoreError::Broken(error.to_string()))
    }
}
