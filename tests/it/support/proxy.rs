//! A TCP proxy between two real parts: it holds bytes back, cuts connections, or leads to another server.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

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

#[derive(Clone, Debug)]
struct State {
    mode: Mode,
    target: String,
    /// Connections of an earlier era are closed.
    era: u64,
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
        let (state, seen) = watch::channel(State { mode: Mode::Pass, target: target.to_owned(), era: 0 });
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
        self.state.send_modify(|state| {
            state.mode = Mode::Refuse;
            state.era += 1;
        });
    }

    /// Closes all connections: what was held is lost. New ones are served.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Pass;
            state.era += 1;
        });
    }

    /// New connections lead to another server; those that there are stay where they are.
    pub fn lead_new_to(&self, target: &str) {
        self.state.send_modify(|state| target.clone_into(&mut state.target));
    }

    /// Closes all connections; new ones lead to another server.
    pub fn lead_to(&self, target: &str) {
        self.state.send_modify(|state| {
            state.mode = Mode::Pass;
            state.era += 1;
            target.clone_into(&mut state.target);
        });
    }
}

async fn serve(client: TcpStream, mut state: watch::Receiver<State>) {
    let State { mode, target, era } = state.borrow_and_update().clone();
    if mode == Mode::Refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(&target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = pump(&mut from_client, &mut to_server, state.clone(), era, &[Mode::Pass, Mode::HoldAnswers]);
    let answers = pump(&mut from_server, &mut to_client, state, era, &[Mode::Pass]);
    // When one direction ends, both connections close.
    tokio::select! {
        () = requests => {}
        () = answers => {}
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
    let mut over = state.clone();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = over.wait_for(|state| state.era != era) => return,
        };
        let Ok(read @ 1..) = read else { return };
        match state.wait_for(|state| state.era != era || moves_in.contains(&state.mode)).await {
            Ok(state) if state.era == era => {}
            _ => return,
        }
        let wrote = tokio::select! {
            wrote = to.write_all(&buffer[..read]) => wrote,
            _ = over.wait_for(|state| state.era != era) => return,
        };
        if wrote.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_passes_holds_cuts_and_leads_elsewhere() {
    use std::time::Duration;

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

    proxy.lead_to(&b);
    assert!(client.read_u8().await.is_err(), "the old connection is closed");
    let mut client = connect().await.expect("it listens");
    client.write_u8(1).await.expect("it takes a byte");
    assert_eq!(client.read_u8().await.expect("an answer"), b'b');

    proxy.refuse();
    assert!(client.read_u8().await.is_err(), "the connection is closed");
    assert!(connect().await.expect("it listens").read_u8().await.is_err(), "and a new one too");
}
