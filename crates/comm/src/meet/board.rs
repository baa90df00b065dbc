//! What the members of a group tell each other when something takes too long. Nothing is said as long as all goes well.

use std::sync::Arc;

use crate::collective::Site;
use crate::error::Result;
use crate::meet::point::MeetingPoint;
use crate::meet::store::Question;

/// One group's part of the store, for as long as the group lives.
pub(crate) struct Board {
    point: Arc<MeetingPoint>,
    key: String,
    /// This process among the members.
    own: usize,
    site: Site,
}

impl Board {
    /// The board of the group that meets under `key`. `site` is for errors.
    pub(crate) fn new(point: Arc<MeetingPoint>, key: &str, own: usize, site: Site) -> Self {
        Self {
            point,
            key: key.to_owned(),
            own,
            site,
        }
    }

    /// Says something of its own that the others may ask for.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(crate) fn post(&self, what: &str, value: &str) -> Result<()> {
        self.set(&format!("{what}/{}", self.own), value)
    }

    /// Says something that is the same whoever says it.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(crate) fn post_for_all(&self, what: &str, value: &str) -> Result<()> {
        self.set(what, value)
    }

    /// Asks what `member`, a place in the group, says or will say of `what`.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(crate) fn ask(&self, member: usize, what: &str) -> Result<Question> {
        self.ask_all(&format!("{what}/{member}"))
    }

    /// Asks what any member says or will say of `what`.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(crate) fn ask_all(&self, what: &str) -> Result<Question> {
        let key = format!("{}/{what}", self.key);
        self.point.client().ask(&key, &self.site)
    }

    /// The answer, once it is here; it is given once.
    pub(crate) fn answer_to(&self, question: &Question) -> Option<String> {
        let value = self.point.client().answer_to(question)?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    fn set(&self, what: &str, value: &str) -> Result<()> {
        let key = format!("{}/{what}", self.key);
        self.point.client().set(&key, value.as_bytes(), &self.site)
    }
}
