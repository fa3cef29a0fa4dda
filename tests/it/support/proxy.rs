//! A TCP proxy between two real parts: it holds bytes back, delays or slices them, cuts connections, or leads to another
//! server.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Reads that may be on their way in one direction: a long way holds more bytes, it is not narrower.
const ON_THE_WAY_MAX: usize = 1_000;

/// What the proxy does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Connections stay, and nothing moves: a network that has gone silent.
    Hold,
    /// Requests arrive, answers do not.
    HoldAnswers,
    /// Connections are closed, and new ones too.
    Refuse,
}

/// How connections end that the proxy closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// As a program closes them.
    End,
    /// As a firewall or a dead host does: RST.
    Reset,
}

#[derive(Clone, Debug)]
struct State {
    mode: Mode,
    target: String,
    /// Connections of an earlier era are closed.
    era: u64,
    close: Close,
    /// What comes from now on arrives so much later, in each direction.
    delay: Duration,
    /// Bytes that are written at once, at most.
    slice: usize,
}

/// A listening proxy; it ends with the test's runtime.
pub struct Proxy {
    /// Where clients connect to: host and port.
    pub address: String,
    state: watch::Sender<State>,
}

#[allow(dead_code, reason = "no test needs all of it")]
impl Proxy {
    /// Leads to `target`, a host and port.
    pub async fn to(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (state, seen) = watch::channel(State {
            mode: Mode::Pass,
            target: target.to_owned(),
            era: 0,
            close: Close::End,
            delay: Duration::ZERO,
            slice: usize::MAX,
        });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, seen.clone()));
            }
        });
        Proxy { address, state }
    }

    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("an address has a port")
    }

    /// Everything passes again, on the connections that there are.
    pub fn pass(&self) {
        self.state.send_modify(|state| state.mode = Mode::Pass);
    }

    /// Nothing moves, in either direction.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.mode = Mode::Hold);
    }

    pub fn hold_answers(&self) {
        self.state.send_modify(|state| state.mode = Mode::HoldAnswers);
    }

    /// Closes all connections and refuses new ones.
    pub fn refuse(&self) {
        self.next_era(Mode::Refuse, Close::End);
    }

    /// Closes all connections: what was held is lost. New ones are served.
    pub fn cut(&self) {
        self.next_era(Mode::Pass, Close::End);
    }

    /// The same, by RST.
    pub fn reset(&self) {
        self.next_era(Mode::Pass, Close::Reset);
    }

    fn next_era(&self, mode: Mode, close: Close) {
        self.state.send_modify(|state| {
            (state.mode, state.close) = (mode, close);
            state.era += 1;
        });
    }

    /// Every byte arrives so much later, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Bytes arrive so many at a time.
    pub fn slice(&self, bytes: usize) {
        self.state.send_modify(|state| state.slice = bytes);
    }

    /// New connections lead to another server; those that there are stay where they are.
    pub fn lead_new_to(&self, target: &str) {
        self.state.send_modify(|state| target.clone_into(&mut state.target));
    }

    /// Closes all connections; new ones lead to another server.
    pub fn lead_to(&self, target: &str) {
        self.lead_new_to(target);
        self.cut();
    }
}

async fn serve(mut client: TcpStream, mut state: watch::Receiver<State>) {
    let State { mode, target, era, .. } = state.borrow_and_update().clone();
    if mode == Mode::Refuse {
        return;
    }
    let Ok(mut server) = TcpStream::connect(&target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let requests = pump(&mut from_client, &mut to_server, state.clone(), era, &[Mode::Pass, Mode::HoldAnswers]);
        let answers = pump(&mut from_server, &mut to_client, state.clone(), era, &[Mode::Pass]);
        // When one direction ends, both connections close.
        tokio::select! {
            () = requests => {}
            () = answers => {}
        }
    }
    let State { era: now, close, .. } = *state.borrow();
    if now != era && close == Close::Reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Moves bytes while the mode allows it, until an end closes or the era is over.
async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<State>,
    era: u64,
    moves_in: &[Mode],
) {
    let (mut over, delays) = (state.clone(), state.clone());
    let (reads, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY_MAX);
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + delays.borrow().delay;
            if reads.send((due, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
        // What was read before still arrives.
        drop(reads);
        std::future::pending().await
    };
    let writing = async {
        while let Some((due, bytes)) = on_the_way.recv().await {
            tokio::time::sleep_until(due).await;
            let passes = state.wait_for(|state| state.era != era || moves_in.contains(&state.mode)).await;
            let Ok(slice) = passes.map(|state| state.slice) else { return };
            for piece in bytes.chunks(slice) {
                if to.write_all(piece).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        biased;
        _ = over.wait_for(|state| state.era != era) => {}
        () = reading => {}
        () = writing => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_passes_holds_cuts_and_leads_elsewhere() {
    /// A server that greets every byte with its own letter.
    async fn server(letter: u8) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while client.read_u8().await.is_ok() && client.write_u8(letter).await.is_ok() {}
                });
            }
        });
        address
    }
    let (a, b) = (server(b'a').await, server(b'b').await);
    let proxy = Proxy::to(&a).await;
    let connect = || TcpStream::connect(proxy.address.clone());
    let mut client = connect().await.expect("it listens");
    client.write_u8(1).await.expect("it takes a byte");
    assert_eq!(client.read_u8().await.expect("an answer"), b'a');

    proxy.hold();
    client.write_u8(1).await.expect("it takes a byte");
    let held = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
    assert!(held.is_err(), "nothing moves");
    proxy.pass();
    assert_eq!(client.read_u8().await.expect("an answer"), b'a');

    let delay = Duration::from_millis(100);
    proxy.delay(delay);
    proxy.slice(1);
    let sent = Instant::now();
    client.write_all(&[1, 1]).await.expect("it takes bytes");
    assert_eq!([client.read_u8().await.expect("an answer"), client.read_u8().await.expect("an answer")], *b"aa");
    assert!(sent.elapsed() >= 2 * delay, "the way is long in both directions");
    proxy.delay(Duration::ZERO);

    proxy.hold_answers();
    client.write_u8(1).await.expect("it takes a byte");
    proxy.reset();
    let lost = client.read_u8().await.expect_err("the answer is lost");
    assert_eq!(lost.kind(), std::io::ErrorKind::ConnectionReset);
    let mut client = connect().await.expect("it listens");
    client.write_u8(1).await.expect("it takes a byte");
    assert_eq!(client.read_u8().await.expect("an answer"), b'a');

    proxy.lead_to(&b);
    assert!(client.read_u8().await.is_err(), "the old connection is closed");
    let mut client = connect().await.expect("it listens");
    client.write_u8(1).await.expect("it takes a byte");
    assert_eq!(client.read_u8().await.expect("an answer"), b'b');

    proxy.refuse();
    assert!(client.read_u8().await.is_err(), "the connection is closed");
    assert!(connect().await.expect("it listens").read_u8().await.is_err(), "and a new one too");
}
