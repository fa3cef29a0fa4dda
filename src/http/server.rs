//! Connections: how many at once, for how long they may say nothing, and how they end.

use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Between two attempts to take a connection where the system has no room for it.
const RETRY: Duration = Duration::from_secs(1);

pub struct Bounds {
    /// Connections at once. More wait to be taken.
    pub connections_max: usize,
    /// Within this time a connection must have asked something.
    pub request_wait: Duration,
    /// Within this time it must have taken the answer.
    pub answer_wait: Duration,
    /// How long a stop waits for answers under way.
    pub stop_wait: Duration,
}

impl Bounds {
    pub const fn new(connections_max: usize) -> Bounds {
        Bounds {
            connections_max,
            request_wait: Duration::from_secs(10),
            // Longer than Prometheus waits for a scrape.
            answer_wait: Duration::from_secs(60),
            // Shorter than a supervisor's patience.
            stop_wait: Duration::from_secs(5),
        }
    }
}

/// Answers until it is stopped.
pub async fn run(listener: TcpListener, router: Router, bounds: Bounds, stop: CancellationToken) {
    let mut protocol = http1::Builder::new();
    // One request each: who keeps connections open would keep the probes of a supervisor out.
    protocol.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(bounds.request_wait);
    let service = TowerToHyperService::new(router);
    let (open, graceful) = (Arc::new(Semaphore::new(bounds.connections_max)), GracefulShutdown::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = open.clone().acquire_owned().await.expect("it is never closed");
                listener.accept().await.map(|(stream, _)| (stream, place))
            } => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            // Its client has gone.
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused) => continue,
            Err(error) => {
                tracing::warn!(%error, "no connection is taken on http.listen");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(RETRY) => continue,
                }
            }
        };
        let connection = graceful.watch(protocol.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            let _ = tokio::time::timeout(bounds.request_wait + bounds.answer_wait, connection).await;
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(bounds.stop_wait, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests on http.listen that were not done in time are cut off");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;

    const WAIT: Duration = Duration::from_millis(200);

    async fn start(
        connections_max: usize,
        request_wait: Duration,
    ) -> (std::net::SocketAddr, JoinHandle<()>, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/", get(|| async { "here" }));
        let bounds = Bounds { connections_max, request_wait, answer_wait: WAIT, stop_wait: WAIT };
        (address, tokio::spawn(run(listener, router, bounds, stop.clone())), stop)
    }

    async fn says(address: std::net::SocketAddr, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    async fn hears(mut stream: TcpStream) -> String {
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        heard
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: meter\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_request_that_never_ends_holds_no_stop_up() {
        let (address, server, stop) = start(10, 1_000 * WAIT).await;
        let half = says(address, "GET / HT").await;
        assert!(hears(says(address, REQUEST).await).await.ends_with("here"), "it is taken by now");
        stop.cancel();
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
        drop(half);
    }

    #[tokio::test]
    async fn who_says_nothing_loses_its_place() {
        let (address, _server, _stop) = start(2, WAIT).await;
        let started = Instant::now();
        let silent = [says(address, "").await, says(address, "GET").await];
        // It waits for a place.
        assert!(hears(says(address, REQUEST).await).await.ends_with("here"));
        assert!(started.elapsed() >= WAIT, "after {:?}", started.elapsed());
        for silent in silent {
            hears(silent).await;
        }
    }
}
