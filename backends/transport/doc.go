// Package transport is the one HTTP stack of the backends. It adds what a
// plain http.Client leaves out when the other side may be slow, broken or
// hostile:
//
//   - credentials go to the registry's own scheme, host and port and nowhere
//     else, also not after a redirect; https never becomes http;
//   - no connection to a link-local address, and to a private or loopback one
//     only if the registry itself lives there;
//   - every phase has a deadline and every body a watchdog, both ways;
//   - bodies have exactly the promised length and ranges exactly the asked bounds;
//   - retries with full jitter that honour Retry-After, within a bound;
//   - one refresh of the credentials on 401, shared by all requests under way;
//   - every failure is one *backends.Error, without a URL, token or query in it.
//
// It knows no registry's paths or formats: drivers do.
package transport
