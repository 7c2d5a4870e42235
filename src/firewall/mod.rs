//! Taps as plain data, and the back ends that put them into the kernel and read them.
