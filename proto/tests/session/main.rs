//! Both ends of a session against peers that say anything at any time: it ends with a reason, and the machine runs on.

mod backup;
mod backup_random;
mod bytes;
mod greeting;
mod messages;
mod primary;
mod primary_random;
