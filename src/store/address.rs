//! Where Redis is, and how it is spoken to: what `redis.url`, `redis.tls` and `redis.sentinel` say.

use std::path::Path;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, RedisResult, TlsCertificates,
};

use super::StoreError;
use crate::config::{Redis, RedisTls};

/// How an address may begin. With `s` it is TLS; the names are those that other clients use too.
const SCHEMES: [&str; 5] = ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "unix"];
/// Where a Sentinel listens if nothing else is said.
const SENTINEL_PORT: u16 = 26379;

pub struct Address {
    /// What `redis.url` names: one Redis, some nodes of a cluster, or Sentinels. The first tells user, password and
    /// database for all nodes.
    pub seeds: Vec<ConnectionInfo>,
    /// How Sentinels call the primary.
    pub primary: Option<String>,
    /// User and password of the Sentinels themselves.
    sentinel: RedisConnectionInfo,
    tls: RedisTls,
}

impl Address {
    pub fn new(redis: &Redis) -> Result<Address, StoreError> {
        let (scheme, rest) = redis.url.split_once("://").unwrap_or(("redis", &redis.url));
        if !SCHEMES.contains(&scheme) {
            return Err(unfit(format!("it begins with `{scheme}://`")));
        }
        let (plain, by_sentinel) = match scheme.strip_suffix("-sentinel") {
            Some(plain) => (plain, true),
            None => (scheme, false),
        };
        // What stands before the first host counts for all; it may stand before each.
        let rest = rest.replace(&format!("{scheme}://"), "");
        if rest.contains("://") {
            return Err(unfit("its addresses begin in different ways".to_owned()));
        }
        let (hosts, database, primary) = if by_sentinel { of_sentinels(&rest)? } else { (rest.as_str(), "", None) };
        let mut seeds: Vec<ConnectionInfo> = Vec::new();
        for host in hosts.split(',').map(str::trim) {
            let mut info = format!("{plain}://{host}{database}")
                .into_connection_info()
                .map_err(|error| unfit(error.to_string()))?;
            if let Some(first) = seeds.first() {
                info = info.set_redis_settings(first.redis_settings().clone());
            }
            info = match info.addr().clone() {
                ConnectionAddr::TcpTls { insecure: true, .. } => {
                    return Err(unfit("`#insecure` is not supported: name its CA in redis.tls.ca".to_owned()));
                }
                ConnectionAddr::Unix(_) if by_sentinel => return Err(unfit("a Sentinel has a host".to_owned())),
                address if by_sentinel && !names_port(host) => info.set_addr(at_port(address, SENTINEL_PORT)),
                _ => info,
            };
            seeds.push(info);
        }
        let mut sentinel = RedisConnectionInfo::default();
        if let Some(username) = &redis.sentinel.username {
            sentinel = sentinel.set_username(username);
        }
        if let Some(password) = &redis.sentinel.password {
            sentinel = sentinel.set_password(&**password);
        }
        if plain != "rediss" && redis.tls != RedisTls::default() {
            return Err(StoreError::Unfit(
                "redis.tls is set, but redis.url begins neither with rediss:// nor with rediss-sentinel://".to_owned(),
            ));
        }
        let address = Address { seeds, primary, sentinel, tls: redis.tls.clone() };
        // What is wrong with the files is told at once.
        address.client(address.seeds[0].clone()).map_err(|error| match error.detail() {
            Some(detail) => StoreError::Unfit(detail.to_owned()),
            None => unfit(error.to_string()),
        })?;
        Ok(address)
    }

    /// A node at `host:port`: spoken to like the first one.
    pub fn node(&self, address: &str) -> Result<ConnectionInfo, StoreError> {
        if self.primary.is_none()
            && let Some(seed) = self.seeds.iter().find(|seed| seed.addr().to_string() == address)
        {
            return Ok(seed.clone());
        }
        let place = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        let (host, port) = place.ok_or_else(|| StoreError::Broken(format!("redis names a node `{address}`")))?;
        let first = self.seeds[0].clone();
        let address = match first.addr() {
            ConnectionAddr::TcpTls { .. } => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            _ => ConnectionAddr::Tcp(host, port),
        };
        Ok(first.set_addr(address))
    }

    /// The Sentinels.
    pub fn sentinels(&self) -> impl Iterator<Item = ConnectionInfo> {
        self.seeds.iter().map(|seed| seed.clone().set_redis_settings(self.sentinel.clone()))
    }

    /// Reads the files of `redis.tls` anew each time: certificates run out and are replaced while a meter runs.
    pub fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::open(info);
        }
        let RedisTls { ca, certificate, key } = &self.tls;
        let client_tls = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientTlsConfig {
                client_cert: read("redis.tls.certificate", certificate)?,
                client_key: read("redis.tls.key", key)?,
            }),
            _ => return Err(unusable("redis.tls.certificate and redis.tls.key belong together: set both".to_owned())),
        };
        let root_cert = ca.as_ref().map(|ca| read("redis.tls.ca", ca)).transpose()?;
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
            .map_err(|error| unusable(format!("redis.tls: {error}")))
    }
}

/// Hosts with what stands before them, the database as it stands behind a host, and the primary's name.
fn of_sentinels(rest: &str) -> Result<(&str, &str, Option<String>), StoreError> {
    let named = rest.rsplit_once('#').filter(|(_, name)| !name.is_empty());
    let (rest, name) = named.ok_or_else(|| {
        unfit("after Sentinels comes the name that they give the primary: redis-sentinel://…/#mymaster".to_owned())
    })?;
    let (hosts, database) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Ok((hosts, database, Some(name.to_owned())))
}

fn names_port(host: &str) -> bool {
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    // An IPv6 address has colons of its own, within brackets.
    host.rsplit_once(']').map_or(host, |(_, after)| after).contains(':')
}

fn at_port(address: ConnectionAddr, port: u16) -> ConnectionAddr {
    match address {
        ConnectionAddr::Tcp(host, _) => ConnectionAddr::Tcp(host, port),
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        other => other,
    }
}

fn read(key: &str, path: &Path) -> RedisResult<Vec<u8>> {
    let pem =
        std::fs::read(path).map_err(|error| unusable(format!("{key}: cannot read {}: {error}", path.display())))?;
    // An empty or other file would be taken for "no certificate", and every server refused.
    if !pem.windows(BEGIN.len()).any(|text| text == BEGIN) {
        return Err(unusable(format!("{key}: {} is no PEM file", path.display())));
    }
    Ok(pem)
}

const BEGIN: &[u8] = b"-----BEGIN ";

fn unusable(what: String) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, "TLS", what))
}

fn unfit(reason: String) -> StoreError {
    let schemes = SCHEMES.map(|scheme| format!("{scheme}://")).join(", ");
    StoreError::Unfit(format!("redis.url is no address ({schemes}): {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Result<Address, String> {
        Address::new(&Redis { url: url.into(), ..Redis::default() }).map_err(|error| error.to_string())
    }

    fn seeds(url: &str) -> Vec<String> {
        let address = address(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        let one = |seed: &ConnectionInfo| {
            let tls = matches!(seed.addr(), ConnectionAddr::TcpTls { .. });
            let settings = seed.redis_settings();
            let user = settings.username().unwrap_or("-");
            let password = settings.password().unwrap_or("-");
            format!("{}{} {user} {password} {}", if tls { "tls " } else { "" }, seed.addr(), settings.db())
        };
        address.seeds.iter().map(one).collect()
    }

    #[test]
    fn an_address_list_shares_what_stands_before_its_first_host() {
        assert_eq!(seeds("redis://10.0.0.1:7001/"), ["10.0.0.1:7001 - - 0"]);
        let nodes = ["a:7001 - x 0", "b:7002 - x 0", "c:6379 - x 0"];
        assert_eq!(seeds("redis://:x@a:7001, b:7002,redis://c"), nodes);
        assert_eq!(seeds("unix:///run/redis.sock"), ["/run/redis.sock - - 0"]);
        assert_eq!(seeds("a:7001,b"), ["a:7001 - - 0", "b:6379 - - 0"]);
        assert_eq!(seeds("rediss://u:x@a:7001,rediss://b"), ["tls a:7001 u x 0", "tls b:6379 u x 0"]);
    }

    #[test]
    fn sentinels_have_a_port_of_their_own_and_name_the_primary() {
        let url = "redis-sentinel://:x@a, b:7002,[::1]/3#mymaster";
        assert_eq!(seeds(url), ["a:26379 - x 3", "b:7002 - x 3", "::1:26379 - x 3"]);
        assert_eq!(address(url).unwrap().primary.as_deref(), Some("mymaster"));
        assert_eq!(seeds("rediss-sentinel://a,rediss-sentinel://b/#m"), ["tls a:26379 - - 0", "tls b:26379 - - 0"]);
        // A node is spoken to as the URL says, a Sentinel with what is its own.
        let sentinel = crate::config::Sentinel { username: Some("s".into()), password: Some("y".into()) };
        let redis = Redis { url: "rediss-sentinel://u:x@a:1/2#m".into(), sentinel, ..Redis::default() };
        let address = Address::new(&redis).unwrap();
        let told = |info: ConnectionInfo| {
            let settings = info.redis_settings();
            let tls = matches!(info.addr(), ConnectionAddr::TcpTls { insecure: false, .. });
            (info.addr().to_string(), tls, settings.password().map(str::to_owned), settings.db())
        };
        assert_eq!(told(address.node("b:6379").unwrap()), ("b:6379".into(), true, Some("x".into()), 2));
        assert_eq!(told(address.sentinels().next().unwrap()), ("a:1".into(), true, Some("y".into()), 0));
        // A Redis beside a Sentinel at the same place is still no Sentinel.
        assert_eq!(told(address.node("a:1").unwrap()), ("a:1".into(), true, Some("x".into()), 2));
    }

    #[test]
    fn what_is_no_address_is_told_with_the_reason() {
        let check = |url: &str, words: &str| {
            let told = address(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert!(told.starts_with("redis.url is no address (redis://, rediss://"), "{told}");
            assert!(told.contains(words), "{url}: {told}");
            assert!(!told.contains("secret"), "{told}");
        };
        check("http://:secret@a", "it begins with `http://`");
        check("redis://:secret@a:7001,", "");
        check("redis://:secret@a,rediss://b", "begin in different ways");
        check("rediss://:secret@a/#insecure", "redis.tls.ca");
        check("redis-sentinel://:secret@a,b", "redis-sentinel://…/#mymaster");
        check("redis-sentinel://:secret@a,b/#", "redis-sentinel://…/#mymaster");
    }

    #[test]
    fn files_of_tls_are_looked_at_when_the_program_starts() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let check = |url: &str, tls: RedisTls, words: &str| {
            let told = Address::new(&Redis { url: url.into(), tls, ..Redis::default() });
            let told = told.err().unwrap_or_else(|| panic!("{words}: it is taken")).to_string();
            assert!(told.contains(words), "{told}");
        };
        let none = RedisTls::default;
        let url = "rediss://a";
        check("redis://a", RedisTls { ca: Some("x".into()), ..none() }, "redis.tls is set, but redis.url");
        check(url, RedisTls { ca: Some("/no/ca".into()), ..none() }, "redis.tls.ca: cannot read /no/ca: No such file");
        check(url, RedisTls { ca: file("ca", "no certificate"), ..none() }, "is no PEM file");
        check(url, RedisTls { certificate: file("cert", ""), ..none() }, "belong together");
        let both = RedisTls { certificate: file("cert", ""), key: file("key", ""), ..none() };
        check(url, both, "redis.tls.certificate");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        check(url, RedisTls { ca: file("ca", broken), ..none() }, "redis.tls: ");
        let address = Address::new(&Redis { url: url.into(), ..Redis::default() }).unwrap();
        assert!(address.node("nowhere").is_err());
    }
}
