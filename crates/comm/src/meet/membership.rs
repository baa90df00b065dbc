//! How the members of a new group find each other: what each of them tells the others before there is a group.

use std::io;
use std::net::{IpAddr, TcpListener};

use crate::collective::Site;
use crate::error::Result;
use crate::meet::door::Door;
use crate::meet::secret::RunSecret;
use crate::meet::store::Client;

/// One creation of one group, seen from one member.
pub(crate) struct Membership<'a> {
    client: &'a Client,
    address: IpAddr,
    secret: &'a RunSecret,
    /// The members meet under this key of the store.
    key: String,
    /// World ranks of the members, in group order.
    ranks: Vec<usize>,
    /// This process among them.
    own: usize,
    site: Site,
}

impl<'a> Membership<'a> {
    /// The member at place `own` of `ranks`, which other hosts reach at `address`. `site` is for errors.
    pub(crate) fn new(
        client: &'a Client,
        address: IpAddr,
        secret: &'a RunSecret,
        key: String,
        ranks: &[usize],
        own: usize,
        site: Site,
    ) -> Self {
        Self {
            client,
            address,
            secret,
            key,
            ranks: ranks.to_vec(),
            own,
            site,
        }
    }

    /// The key under which the members meet.
    #[cfg(feature = "nccl")]
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Where other hosts reach this rank.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// The secret that the members prove to each other to know.
    pub(crate) fn secret(&self) -> &RunSecret {
        self.secret
    }

    /// What a connection to `member`, a place in the group, is for, in its handshake.
    pub(crate) fn purpose(&self, member: usize) -> String {
        format!("{}/{member}", self.key)
    }

    /// A door for `expected` other members.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub(crate) fn door(&self, listener: TcpListener, expected: usize) -> io::Result<Door> {
        let purpose = self.purpose(self.own);
        Door::new(listener, self.secret.clone(), purpose, expected)
    }

    /// Publishes this member's `value` and collects everyone's, in group order.
    ///
    /// # Errors
    /// When a member leaves, anybody fails, or the timeout passes.
    pub(crate) fn exchange(&self, what: &str, value: &str) -> Result<Vec<String>> {
        let key = format!("{}/{what}", self.key);
        let members = (self.own, self.ranks.as_slice());
        let gathered = self
            .client
            .gather(&key, members, value.as_bytes(), &self.site)?;
        let values = gathered.map_err(|missing| self.client.timed_out(missing, &self.site))?;
        Ok(values.into_iter().map(text).collect())
    }

    /// Publishes this member's `value` of `what`.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(crate) fn set(&self, what: &str, value: &str) -> Result<()> {
        let key = format!("{}/{what}/{}", self.key, self.own);
        self.client.set(&key, value.as_bytes(), &self.site)
    }

    /// What `member`, a place in the group, has published or will publish of `what`.
    ///
    /// # Errors
    /// When the member leaves, anybody fails, or the timeout passes.
    pub(crate) fn get(&self, member: usize, what: &str) -> Result<String> {
        let key = format!("{}/{what}/{member}", self.key);
        let value = self.client.get(&key, self.ranks[member], &self.site)?;
        Ok(text(value))
    }
}

fn text(value: Vec<u8>) -> String {
    String::from_utf8(value)
        .unwrap_or_else(|wrong| String::from_utf8_lossy(wrong.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    use crate::collective::Collective;
    use crate::error::CommError;
    use crate::meet::config::{Transport, WorldConfig};
    use crate::meet::health::Health;
    use crate::meet::store::{Server, Traffic};

    fn config(rank: usize, ranks: usize, timeout: Duration) -> WorldConfig {
        WorldConfig {
            rank,
            world_size: ranks,
            local_rank: rank,
            local_world_size: ranks,
            master_addr: "127.0.0.1".into(),
            master_port: 0,
            master_fd: None,
            secret: RunSecret::guessable("a secret of this test"),
            timeout,
            network_interface: None,
            transport: Transport::Auto,
        }
    }

    /// What each of `ranks` ranks makes of a membership of all of them, and what was said meanwhile.
    fn all<T: Send>(
        ranks: usize,
        timeout: Duration,
        body: impl Fn(usize, &Membership<'_>) -> T + Sync,
    ) -> (Vec<T>, Traffic) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let secret = config(0, ranks, timeout).secret;
        let server = Server::start(listener, ranks, secret).unwrap();
        let everyone: Vec<usize> = (0..ranks).collect();
        let one = |rank: usize| {
            let config = config(rank, ranks, timeout);
            let client = Client::connect(address, &config, Arc::new(Health::new(timeout))).unwrap();
            let site = Site {
                collective: Collective::NewGroup,
                sequence: 0,
                group: "g".into(),
                step: None,
            };
            let membership = Membership::new(
                &client,
                address.ip(),
                &config.secret,
                "group/g".into(),
                &everyone,
                rank,
                site,
            );
            let made = body(rank, &membership);
            // Both stay until everybody has what it needs.
            (client, made)
        };
        let made = std::thread::scope(|scope| {
            let one = &one;
            let ranks: Vec<_> = everyone
                .iter()
                .map(|&rank| scope.spawn(move || one(rank)))
                .collect();
            let joined = ranks.into_iter().map(|rank| rank.join().unwrap());
            joined.collect::<Vec<_>>()
        });
        let traffic = server.traffic();
        let (clients, made): (Vec<Client>, Vec<T>) = made.into_iter().unzip();
        drop(clients);
        (made, traffic)
    }

    /// Each value asked for singly would be 2 N^2 + N messages.
    #[test]
    fn an_exchange_is_one_request_and_one_answer_for_each_rank() {
        for ranks in [2, 8, 48] {
            let (exchanged, traffic) = all(ranks, Duration::from_secs(120), |rank, membership| {
                membership
                    .exchange("number", &format!("of {rank}"))
                    .unwrap()
            });
            let expected: Vec<String> = (0..ranks).map(|rank| format!("of {rank}")).collect();
            assert!(exchanged.iter().all(|values| *values == expected));
            // A hello and its welcome come first.
            let each = 2 * ranks as u64;
            assert_eq!((traffic.received, traffic.sent), (each, each));
        }
    }

    #[test]
    fn values_that_are_too_long_for_one_message_come_in_several() {
        let long = |rank: usize| char::from(b'a' + rank as u8).to_string().repeat(30_000);
        let (exchanged, traffic) = all(5, Duration::from_secs(120), |rank, membership| {
            membership.exchange("text", &long(rank)).unwrap()
        });
        let expected: Vec<String> = (0..5).map(long).collect();
        assert!(exchanged.iter().all(|values| *values == expected));
        assert_eq!((traffic.received, traffic.sent), (10, 5 + 5 * 3));
    }

    #[test]
    fn who_did_not_come_is_named() {
        let together = Barrier::new(2);
        let (outcomes, _) = all(4, Duration::from_secs(2), |rank, membership| {
            let comes = rank % 2 == 0;
            comes.then(|| {
                together.wait();
                membership.exchange("number", "").unwrap_err()
            })
        });
        for error in outcomes.into_iter().flatten() {
            let CommError::Timeout { ranks, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(*ranks, [1, 3]);
        }
    }

    #[test]
    fn members_that_disagree_are_told_so() {
        let (outcomes, _) = all(3, Duration::from_secs(120), |rank, membership| {
            let place = [0, 1, 1][rank];
            let members = (place, &[0, 1, 2][..]);
            let client = membership.client;
            // Two give the value of one member; whichever comes second is shut out, and everybody hears of it.
            let gathered = client.gather("k", members, b"", &membership.site);
            gathered.unwrap_err().to_string()
        });
        let reason =
            "its connection to rank 0's store was closed: the value number 1 is there already";
        let told = outcomes.iter().filter(|text| text.contains(reason)).count();
        assert!(told >= 2, "{outcomes:?}");
    }
}
