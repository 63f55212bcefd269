// Package pyclient runs the published Python client of Singularity Registry,
// which others wrote, against servers and mounts under test. Only tests
// import it.
package pyclient

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// pins are the Python client and what it needs here. requests-toolbelt makes
// its uploads and is not among its plain dependencies; sqlalchemy is left out on
// purpose: with it, a pull also files the image into a local database. The
// client runs without a container runtime installed: it warns, and skips the
// inspection of images, which neither push nor pull sends anywhere.
func pins() []string {
	return []string{
		"sregistry==0.2.39", "requests-toolbelt==1.0.0", "requests==2.32.3", "urllib3==2.2.3", "spython==0.3.14", "pygments==2.18.0",
	}
}

// Install gives the client's program in a fresh virtual environment, which
// costs a download. SREGISTRY_INTEROP_VENV names one to make once and use again.
func Install(t testing.TB) string {
	t.Helper()
	venv := os.Getenv("SREGISTRY_INTEROP_VENV")
	if venv == "" {
		venv = filepath.Join(t.TempDir(), "venv")
	}
	program := filepath.Join(venv, "bin", "sregistry")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	for _, args := range [][]string{
		{"python3", "-m", "venv", venv},
		append([]string{filepath.Join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check"}, pins()...),
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	return program
}

// Client is the Python client with a home of its own and one account.
type Client struct {
	Home    string
	t       testing.TB
	program string
}

// New gives a client of the registry at url.
func New(t testing.TB, program, url, user, token string) Client {
	t.Helper()
	c := Client{t: t, program: program, Home: t.TempDir()}
	// What the registry's token page gives its users to paste.
	text, err := json.Marshal(map[string]any{"registry": map[string]string{"token": token, "username": user, "base": url}})
	if err == nil {
		err = os.WriteFile(filepath.Join(c.Home, ".sregistry"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Try runs the client in its home and gives what it printed.
func (c Client) Try(args ...string) (string, error) {
	cmd := exec.CommandContext(c.t.Context(), c.program, args...)
	cmd.Dir = c.Home
	// It takes the home folder from the password database, so that HOME alone
	// would make it write to the tester's own file.
	cmd.Env = []string{
		"HOME=" + c.Home, "SREGISTRY_CLIENT_SECRETS=" + filepath.Join(c.Home, ".sregistry"), "PATH=" + os.Getenv("PATH"),
		"SREGISTRY_CLIENT=registry", "LC_ALL=C.UTF-8", "NO_PROXY=*", "SREGISTRY_DISABLE=true",
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Run is Try that ends the test on an error.
func (c Client) Run(args ...string) string {
	c.t.Helper()
	out, err := c.Try(args...)
	if err != nil {
		c.t.Fatalf("sregistry %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// File writes a file into the client's home and gives its path.
func (c Client) File(name string, content []byte) string {
	c.t.Helper()
	path := filepath.Join(c.Home, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}
