//! Both ends of a session against peers that say anything at any time: it ends with a reason, and the machine runs on.

mod backup;
mod messages;
mod primary;
mod primary_random;

mod backup_random;
