//! Rights at a real broker: the client library cannot give them, so that two plain requests of Kafka's protocol do.

use std::io::{Read, Write};
use std::net::TcpStream;

/// What a right is on. The numbers are Kafka's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub on: On,
    pub name: String,
    pub may: May,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Topic = 2,
    Group = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    Read = 3,
    Write = 4,
    Describe = 8,
    DescribeConfigs = 10,
}

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const VERSION: i16 = 1;
const LITERAL: u8 = 3;
const ALLOW: u8 = 3;

/// Gives rights to a user; the listener takes whoever comes for an administrator.
pub fn give(brokers: &str, user: &str, rights: &[Right]) {
    change(brokers, user, rights, CREATE_ACLS);
}

pub fn take(brokers: &str, user: &str, rights: &[Right]) {
    change(brokers, user, rights, DELETE_ACLS);
}

/// Both requests have the same fields: the first names what is made, the second what is to be found.
fn change(brokers: &str, user: &str, rights: &[Right], request: i16) {
    let mut body = Vec::new();
    body.extend(request.to_be_bytes());
    body.extend(VERSION.to_be_bytes());
    body.extend(7_i32.to_be_bytes());
    text(&mut body, "test");
    body.extend((rights.len() as i32).to_be_bytes());
    for right in rights {
        body.push(right.on as u8);
        text(&mut body, &right.name);
        body.push(LITERAL);
        text(&mut body, &format!("User:{user}"));
        text(&mut body, "*");
        body.extend([right.may as u8, ALLOW]);
    }
    let mut stream = TcpStream::connect(brokers).expect("the broker listens");
    stream.write_all(&[&(body.len() as i32).to_be_bytes(), &*body].concat()).expect("it takes a request");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("it answers");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("it answers");
    // Which request it answers, how long it holds the user back, and how many results there are; then each with its error.
    let mut results = &answer[12..];
    for right in rights {
        assert_eq!(results[..2], [0, 0], "{right:?}: {answer:?}");
        results = after_text(&results[2..]);
        if request == DELETE_ACLS {
            assert_eq!(results[..4], 1_i32.to_be_bytes(), "{right:?} was not given: {answer:?}");
            assert_eq!(results[4..6], [0, 0], "{right:?}: {answer:?}");
            // The error's text, kind, name, kind of name, user, host, and the two of what is allowed.
            results = &after_text(&results[6..])[1..];
            results = &after_text(results)[1..];
            results = &after_text(after_text(results))[2..];
        }
    }
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as i16).to_be_bytes());
    to.extend(text.as_bytes());
}

fn after_text(bytes: &[u8]) -> &[u8] {
    let length = i16::from_be_bytes([bytes[0], bytes[1]]);
    &bytes[2 + length.max(0) as usize..]
}
