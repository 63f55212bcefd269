// Package secrets finds settings and keeps credentials: in the environment
// first, then in the secrets file that the Python client (sregistry-cli) uses
// too. Its names are kept: SREGISTRY_<CLIENT>_<VARIABLE>, SREGISTRY_CLIENT,
// SREGISTRY_CLIENT_SECRETS (default $HOME/.sregistry), and the credential
// cache below SREGISTRY_CREDENTIALS_CACHE.
//
// The secrets file is a JSON object keyed by client name, each client an object
// of settings. Whatever else it holds is kept when a client's settings are
// updated: other clients, unknown keys, every digit of a number.
//
// It imports the standard library only. No error, log line or String of this
// package contains a value that came from the environment or the file.
package secrets
