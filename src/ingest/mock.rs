//! A broker inside the process, for the demo: librdkafka's mock speaks the real protocol on loopback.
//! It keeps little (5 MiB a partition) and stamps nothing, so it proves nothing about speed or durability.

use anyhow::Context;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

pub struct MockBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl MockBroker {
    pub fn start(topics: &[(&str, i32)]) -> anyhow::Result<MockBroker> {
        let cluster = MockCluster::new(1).context("the mock broker does not start")?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1).with_context(|| format!("the mock broker's topic {topic}"))?;
        }
        Ok(MockBroker { cluster })
    }

    pub fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}
