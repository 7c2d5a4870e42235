//! The only unsafe code, one fenced file per kernel or library interface.
