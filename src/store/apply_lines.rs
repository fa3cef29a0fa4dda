//! The lines of a call: what `lua/apply.lua` needs to name an event.

use crate::ledger::apply::json_text;
use crate::ledger::call::CallEvent;

/// What names an event in a message, should it be denied: its offset, its date, its source and its id in JSON.
pub fn write_line(line: &mut Vec<u8>, event: &CallEvent, source: usize) {
    let mut digits = itoa::Buffer::new();
    line.extend_from_slice(digits.format(event.offset).as_bytes());
    line.push(b' ');
    line.extend_from_slice(digits.format(event.event.dated_ms).as_bytes());
    line.push(b' ');
    line.extend_from_slice(digits.format(source + 1).as_bytes());
    line.push(b' ');
    let id = &event.event.id;
    if is_plain(id) {
        line.push(b'"');
        line.extend_from_slice(id.as_bytes());
        line.push(b'"');
    } else {
        line.extend_from_slice(json_text(id).as_bytes());
    }
    line.push(b'\n');
}

/// Whether a text stands in JSON as it is: then it need not go through the serializer.
fn is_plain(text: &str) -> bool {
    // Without an early end, so that the compiler can look at many bytes at once.
    text.bytes().fold(true, |plain, byte| plain & (byte >= 0x20) & (byte != b'"') & (byte != b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_is_what_json_leaves_as_it_is() {
        for byte in 0..=127u8 {
            let text = format!("a{}b", char::from(byte));
            assert_eq!(is_plain(&text), json_text(&text) == format!("\"{text}\""), "byte {byte}");
        }
        assert!(is_plain("é") && json_text("é") == "\"é\"");
    }
}
