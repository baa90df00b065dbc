//! A rank's connections to all others' news: rank 0's store, and this rank's line to it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::collective::{Collective, Site};
use crate::error::Result;
use crate::meet::config::WorldConfig;
use crate::meet::health::{Fate, Health};
use crate::meet::rendezvous;
use crate::meet::store::{Client, Server};

/// The connections behind a world of more than one rank.
pub(crate) struct MeetingPoint {
    client: Client,
    /// On rank 0. Dropped after the client, whose end it would otherwise take for a failure.
    server: Option<Server>,
    /// Where other hosts reach this rank.
    address: IpAddr,
}

impl MeetingPoint {
    /// Meets all other ranks, on one of `ports`. Returns when everybody is there; `None` in a world of one.
    ///
    /// # Errors
    /// [`CommError::Listen`] or [`CommError::Rendezvous`], saying what to check.
    pub(crate) fn reach(
        config: &WorldConfig,
        ports: &[u16],
        health: &Arc<Health>,
    ) -> Result<Option<Self>> {
        let failed = |reason: String| config.rendezvous_failed(reason);
        if config.rank >= config.world_size {
            return Err(failed(format!(
                "there is no rank {} among {} ranks",
                config.rank, config.world_size
            )));
        }
        if config.world_size == 1 {
            return Ok(None);
        }
        let server = if config.rank == 0 {
            let listener = rendezvous::listen(config, ports)?;
            let server = Server::start(listener, config.world_size, config.secret.clone())
                .map_err(|error| failed(format!("the store could not start: {error}")))?;
            Some(server)
        } else {
            None
        };
        let own_listener = server.as_ref().map(Server::address).transpose();
        let own_listener =
            own_listener.map_err(|error| failed(format!("no local address: {error}")))?;
        let client = rendezvous::connect(config, ports, own_listener, health)?;
        let site = Site {
            collective: Collective::NewGroup,
            sequence: 0,
            group: "all ranks".into(),
            step: None,
        };
        let everyone: Vec<usize> = (0..config.world_size).collect();
        if let Err(missing) = client.gather("met", (config.rank, &everyone), &[], &site)? {
            return Err(failed(format!(
                "ranks {missing:?} did not come within {} s; check that they were started",
                config.timeout.as_secs_f64()
            )));
        }
        let address = rendezvous::own_address(config, &client, server.as_ref())?;
        Ok(Some(Self {
            client,
            server,
            address,
        }))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What was said over the store so far, on rank 0.
    #[cfg(feature = "testing")]
    pub(crate) fn traffic(&self) -> Option<crate::meet::store::Traffic> {
        self.server.as_ref().map(Server::traffic)
    }

    /// Where other hosts reach this rank.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Tells everyone how this rank ends.
    pub(crate) fn end(&self, fate: Fate) {
        match &self.server {
            Some(server) => server.end(fate),
            None => self.client.end(fate),
        }
    }
}
