//! Network namespaces: create, list, open, enter, delete; sockets opened inside, used outside.
