//! The command lines: arguments as typed, then resolved; exit codes; output as text and JSON.
