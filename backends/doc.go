// Package backends is the vocabulary of sregistry-fs: the nouns every other
// package speaks (Ref, Record, Digest, Error), the contract a registry is
// reached through (Backend and its optional capabilities), and the table entry
// a kind of registry announces itself with (Driver).
//
// It imports the standard library and package secrets, and nothing else of
// this project, so that anything may import it. It performs no I/O.
//
// To write a backend, copy backends/dir and run backends/backendtest on it.
package backends
