//! The words that every layer shares: names that are safe to use, services, DSCP values,
//! processes that own something.

mod alike;
mod causes;
pub mod dscp;
mod fnv;
pub mod groups;
pub(crate) mod icmp;
mod in_json;
pub mod name;
pub mod owner;
pub mod printable;
mod protocol;
pub mod service;
mod shipped;

pub use alike::{DidYouMean, Known, alike};
pub use causes::WithCauses;
pub use dscp::{Dscp, DscpRange};
pub(crate) use fnv::fnv1a;
pub use groups::{GroupError, Groups, read as read_list};
pub(crate) use in_json::text_in_json;
pub use name::{
    HostId, HostName, IfName, LabName, NameError, NetnsName, RouterId, RouterName, RunId,
};
pub use owner::{Liveness, Owner};
pub use printable::{PrintableJson, PrintableLog, printable, printable_lines};
pub use protocol::Protocol;
pub(crate) use protocol::protocol_number;
pub use service::{Service, ServiceError, ServiceLimits, parse_services, service_names};
pub use shipped::ServiceGroup;
