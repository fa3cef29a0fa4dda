//! Asks a meter over HTTP: a page of metrics, and whether it is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::model::Scrape;
use super::page::Page;

/// Pages of meters have some ten thousand bytes; more than this is none.
const PAGE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where a meter answers: `host:port`, or `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: String,
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix("/metrics").unwrap_or(address).trim_end_matches('/');
        let port =
            address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        match port {
            Some(_) if !address.contains('/') => Ok(Endpoint { address: address.to_owned() }),
            _ => Err("it must look like http://127.0.0.1:9464".to_owned()),
        }
    }
}

impl Endpoint {
    /// Of a meter with this `http.listen` on this machine: one that listens everywhere also does here.
    pub fn here(listen: &str) -> Endpoint {
        let address = listen.parse::<SocketAddr>().map(|mut address| {
            match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
            address.to_string()
        });
        Endpoint { address: address.unwrap_or_else(|_| listen.to_owned()) }
    }

    /// All that the meter says now, or why it says nothing.
    pub async fn ask(&self, at_seconds: f64, within: Duration) -> Result<Scrape, String> {
        let asked = async {
            let (status, page) = self.get("/metrics").await?;
            if status != 200 {
                return Err(format!("/metrics answers {status}"));
            }
            let (status, readiness) = self.get("/readyz").await?;
            let ready = if status == 200 { Ok(()) } else { Err(not_ready(&readiness)) };
            Ok(Scrape { at_seconds, page: Page::read(&page), ready })
        };
        match tokio::time::timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {within:?}")),
        }
    }

    /// HTTP 1.0, whose answers end with the connection and come in one piece.
    async fn get(&self, path: &str) -> Result<(u16, String), String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(&self.address).await.map_err(failed)?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        let mut answer = Vec::new();
        stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await.map_err(failed)?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (status, body) = status.zip(answer.split_once("\r\n\r\n")).ok_or("that is no answer in HTTP")?;
        Ok((status, body.1.to_owned()))
    }
}

/// The checks of `/readyz` that fail.
fn not_ready(readiness: &str) -> String {
    let failed = readiness.lines().filter_map(|line| line.strip_prefix("[-]"));
    failed.map(|line| line.replacen(" failed: ", ": ", 1)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_is_named_by_host_and_port() {
        let check = |text: &str, expected: Option<&str>| {
            let address = text.parse::<Endpoint>().ok().map(|endpoint| endpoint.address);
            assert_eq!(address.as_deref(), expected, "{text}");
        };
        check("http://meter-1:9464", Some("meter-1:9464"));
        check("http://meter-1:9464/metrics", Some("meter-1:9464"));
        check("[::1]:9464/", Some("[::1]:9464"));
        for wrong in ["meter-1", ":9464", "https://meter-1:9464", "meter-1:http", "http://meter-1:1/other"] {
            check(wrong, None);
        }
        assert_eq!(Endpoint::here("0.0.0.0:9464").address, "127.0.0.1:9464");
        assert_eq!(Endpoint::here("[::]:9464").address, "[::1]:9464");
        assert_eq!(Endpoint::here("10.1.2.3:9464").address, "10.1.2.3:9464");
        assert_eq!(Endpoint::here("localhost:9464").address, "localhost:9464");
    }

    #[test]
    fn what_fails_is_said_in_one_line() {
        let page = "[-]redis failed: no answer\n[+]kafka ok\n[-]halts failed: shard 3 failed: x\nreadyz check failed\n";
        assert_eq!(not_ready(page), "redis: no answer; halts: shard 3 failed: x");
    }

    #[tokio::test]
    async fn who_does_not_answer_is_no_failure() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = Endpoint { address: listener.local_addr().unwrap().to_string() };
        let said = silent.ask(0.0, Duration::from_millis(50)).await.unwrap_err();
        assert!(said.contains("no answer within"), "{said}");
        drop(listener);
        assert!(silent.ask(0.0, Duration::from_secs(60)).await.is_err());
    }
}
