package backends

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/sregistry/sregistry-fs/secrets"
)

// Driver is the code for one kind of registry: an entry of the table in
// backends/all.
type Driver struct {
	// Scheme is the client name people know: "registry", "s3", "dir".
	Scheme string
	// Summary is one line for `backends` and the documentation.
	Summary string
	// Location says what follows "scheme:" in a mount spec, as in
	// "https://HOST" or "/PATH"; empty when nothing may.
	Location string
	// Options are the driver's settings; they feed --help and the docs.
	Options []Option
	// Dial checks the configuration and returns a backend. It may ask the
	// registry who it is, within ctx, but an unreachable registry is no
	// error here: cached images keep working without it. A missing setting is
	// an Error of kind Invalid or Denied that names the setting.
	Dial func(ctx context.Context, c Config) (Backend, error)
}

// Option is one setting of a driver: given as name=value on the command line
// (--option), in the environment or in the secrets file.
type Option struct {
	Name    string // "base", lower case, unique within the driver
	Env     string // environment variable and secrets file key: SREGISTRY_REGISTRY_BASE
	Usage   string // one line
	Default string // for the documentation
	Secret  bool   // never shown; not accepted on the command line
}

// Config is what a driver is dialled with. Location and Options come from the
// mount spec and flags; everything else is the environment the program
// provides, passed in so that nothing is global.
type Config struct {
	// Location is what followed "scheme:" in the spec; may be empty.
	Location string
	// Options holds --option values by Option.Name; they come before Settings.
	Options map[string]string
	// Settings looks up this client's settings: environment, then the secrets
	// file. Never nil.
	Settings *secrets.Section
	// HTTP is the client that transport builds on; nil means the network.
	HTTP *http.Client
	// UserAgent is sent with every request; empty means the program's name.
	UserAgent string
	// Log is never nil.
	Log *slog.Logger
	// Now is the clock; never nil.
	Now func() time.Time
}

// Setting gives an option's value: --option, then environment, then the
// secrets file, then the option's default. legacy are further keys of the
// client's section in the secrets file to accept.
func (c Config) Setting(o Option, legacy ...string) string {
	if v, ok := c.Options[o.Name]; ok && !o.Secret {
		return v
	}
	if v, ok := c.Settings.Get(o.Env, legacy...); ok {
		return v
	}
	return o.Default
}
