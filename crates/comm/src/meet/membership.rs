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
        self.set(what, value)?;
        (0..self.ranks.len())
            .map(|member| self.get(member, what))
            .collect()
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
        Ok(String::from_utf8_lossy(&value).into_owned())
    }
}
