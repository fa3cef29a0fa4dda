//! A Kafka of a test's own to which two proxies lead: the broker sends each client back to the proxy that it came by.

use super::one_broker::{Listener, OneBroker};
use super::proxy::Proxy;
use super::redis::free_port;

pub struct ProxiedKafka {
    pub broker: OneBroker,
    plain: u16,
    /// Two ways to the broker, each with a listener of its own.
    pub ways: [Proxy; 2],
}

impl ProxiedKafka {
    pub async fn start() -> ProxiedKafka {
        let folder = tempfile::tempdir().expect("a folder");
        let [plain, first, second] = [(); 3].map(|()| free_port());
        let ways = [to(first).await, to(second).await];
        let listeners = [
            Listener::plain("PLAIN", plain, format!("127.0.0.1:{plain}")),
            Listener::plain("FIRST", first, ways[0].address.clone()),
            Listener::plain("SECOND", second, ways[1].address.clone()),
        ];
        ProxiedKafka { broker: OneBroker::start(folder, &listeners, "", &[]).await, plain, ways }
    }

    /// Past the proxies, for the test.
    pub fn plain(&self) -> String {
        format!("127.0.0.1:{}", self.plain)
    }
}

async fn to(port: u16) -> Proxy {
    Proxy::to(&format!("127.0.0.1:{port}")).await
}
