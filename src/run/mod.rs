//! What the runners do: the quick job from its resolved question to its report.

pub mod packet;
