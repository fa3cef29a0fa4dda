//! A Redis that is further away: a proxy before it that holds every byte back for a while, in both directions.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// A listening proxy, until the process ends.
pub struct Away {
    pub redis_url: String,
    delay_ms: Arc<AtomicU64>,
}

impl Away {
    /// Leads to the Redis of an address, `redis://host:port/`.
    pub fn before(redis_url: &str) -> anyhow::Result<Away> {
        let rest = redis_url.strip_prefix("redis://").context("the address of a Redis begins with redis://")?;
        let target = rest.split('/').next().unwrap_or_default().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let redis_url = format!("redis://{}/", listener.local_addr()?);
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay = delay_ms.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A connection that cannot be served is closed, and whoever opened it tells.
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                if let (Ok(to_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) {
                    carry(client, to_server, delay.clone());
                    carry(server, to_client, delay.clone());
                }
            }
        });
        Ok(Away { redis_url, delay_ms })
    }

    /// What comes from now on arrives so much later, in each direction.
    pub fn set_delay_ms(&self, delay_ms: u64) {
        self.delay_ms.store(delay_ms, Ordering::Relaxed);
    }
}

/// Carries one direction of a connection. Reading goes on while bytes wait: a long way holds more of them, it is not
/// narrower.
fn carry(mut from: TcpStream, mut to: TcpStream, delay_ms: Arc<AtomicU64>) {
    let (reads, writes) = channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if reads.send((due, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in writes {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
