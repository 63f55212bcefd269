//go:build interop

package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

// pins are the Python client and what it needs here. requests-toolbelt makes
// its uploads and is not among its plain dependencies; sqlalchemy is left out on
// purpose: with it, a pull also files the image into a local database. The
// client runs without a container runtime installed: it warns, and skips the
// inspection of images, which neither push nor pull sends anywhere.
var pins = []string{
	"sregistry==0.2.39", "requests-toolbelt==1.0.0", "requests==2.32.3", "urllib3==2.2.3", "spython==0.3.14", "pygments==2.18.0",
}

// python gives the client's program in a fresh virtual environment.
// SREGISTRY_INTEROP_VENV names one to make once and use again.
func python(t *testing.T) string {
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
		append([]string{filepath.Join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check"}, pins...),
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	return program
}

// client is the Python client with a home of its own.
type client struct {
	t       *testing.T
	program string
	home    string
}

func newClient(t *testing.T, program string, s *registrytest.Server) client {
	t.Helper()
	c := client{t: t, program: program, home: t.TempDir()}
	// What the registry's token page gives its users to paste.
	text, err := json.Marshal(map[string]any{"registry": map[string]string{"token": token, "username": user, "base": s.URL}})
	if err == nil {
		err = os.WriteFile(filepath.Join(c.home, ".sregistry"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// try runs the client in its home.
func (c client) try(args ...string) (string, error) {
	cmd := exec.CommandContext(c.t.Context(), c.program, args...)
	cmd.Dir = c.home
	// It takes the home folder from the password database, so that HOME alone
	// would make it write to the tester's own file.
	cmd.Env = []string{"HOME=" + c.home, "SREGISTRY_CLIENT_SECRETS=" + filepath.Join(c.home, ".sregistry"), "PATH=" + os.Getenv("PATH"), "SREGISTRY_CLIENT=registry", "LC_ALL=C.UTF-8", "NO_PROXY=*", "SREGISTRY_DISABLE=true"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c client) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("sregistry %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c client) file(name string, content []byte) string {
	c.t.Helper()
	path := filepath.Join(c.home, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// image gives bytes with everything in them that a form or a line
// conversion could hurt.
func image(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b) // never fails
	copy(b, "\r\n--boundary\r\n\x00\xff")
	return b
}

func TestPythonClient(t *testing.T) {
	program := python(t)
	for _, works := range []bool{true, false} {
		t.Run(fmt.Sprintf("delete works %v", works), func(t *testing.T) {
			s := serve(t, registrytest.Options{DeleteWorks: works})
			ours := dial(t, s, account(), nil)
			theirs := newClient(t, program, s)

			// They push, we read.
			first := image(1, 3<<20+17)
			out := theirs.run("push", "--name", "registry://Dino/Tacos:V1", theirs.file("first.sif", first))
			if !strings.Contains(out, "Upload Complete") {
				t.Fatalf("push:\n%s", out)
			}
			s.RunWorker()
			rec := stat(t, ours, ref("dino", "tacos", "v1"))
			wantBytes(t, ours, rec, string(first))
			if rec.Digest != data(string(first)).Digest() {
				t.Errorf("digest %v", rec.Digest)
			}

			// We push, they find and pull.
			second := image(2, 5<<20+3)
			if _, err := push(t, ours, ref("dino", "salad", "1.0_a"), string(second)); err != nil {
				t.Fatal(err)
			}
			if out := theirs.run("search", "dino/"); !strings.Contains(out, "dino/salad:1.0_a") || !strings.Contains(out, "dino/tacos:v1") {
				t.Errorf("search of a collection:\n%s", out)
			}
			if out := theirs.run("search", "*"); !strings.Contains(out, "dino/salad:1.0_a") {
				t.Errorf("search of everything:\n%s", out)
			}
			if out := theirs.run("search", "dino/salad:1.0_a"); !strings.Contains(out, "dino/salad") {
				t.Errorf("search of an image:\n%s", out)
			}
			for name, want := range map[string][]byte{"dino/salad:1.0_a": second, "dino/tacos:v1": first} {
				theirs.run("pull", "--name", "pulled.sif", "--no-cache", "registry://"+name)
				got, err := os.ReadFile(filepath.Join(theirs.home, "pulled.sif"))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s was pulled as %d bytes of %d, %v", name, len(got), len(want), err)
				}
				_ = os.Remove(filepath.Join(theirs.home, "pulled.sif")) // the next pull makes it
			}

			// They overwrite what we pushed; our record is then of the past.
			old := stat(t, ours, ref("dino", "salad", "1.0_a"))
			theirs.run("push", "--name", "registry://dino/salad:1.0_a", theirs.file("third.sif", first))
			if _, err := read(t, ours, old); err == nil {
				t.Error("the old record still opens")
			}
			wantBytes(t, ours, stat(t, ours, old.Ref), string(first))

			// A private image, by the signed request of either side.
			s.MakeCollection("dino", true, user)
			wantBytes(t, dial(t, s, account(), nil), stat(t, dial(t, s, account(), nil), rec.Ref), string(first))
			theirs.run("pull", "--name", "private.sif", "--no-cache", "registry://dino/tacos:v1")
			s.MakeCollection("dino", false, user)

			out, err := theirs.try("delete", "--force", "registry://dino/tacos:v1")
			_, still := s.Get("dino", "tacos", "v1")
			if still == works {
				t.Errorf("delete: %v\n%s", err, out)
			}
			if !works {
				if err == nil || !strings.Contains(out, "500") {
					t.Errorf("the client took the server's failure for a success: %v\n%s", err, out)
				}
				return
			}
			rec = stat(t, ours, ref("dino", "salad", "1.0_a"))
			if err := remove(t, ours, rec); err != nil {
				t.Error(err)
			}
			if out, err := theirs.try("pull", "--name", "gone.sif", "--no-cache", "registry://dino/salad:1.0_a"); err == nil {
				t.Errorf("what we deleted can be pulled:\n%s", out)
			}
		})
	}
	t.Run("the same bytes again", func(t *testing.T) { losesAnImage(t, program) })
}

// The client sends the same bytes again without a look: the server loses them. Our
// push does not do that, and can repair it with other bytes.
func losesAnImage(t *testing.T, program string) {
	s := serve(t, registrytest.Options{})
	ours := dial(t, s, account(), nil)
	theirs := newClient(t, program, s)
	body := image(3, 100_000)
	path := theirs.file("a.sif", body)
	theirs.run("push", "--name", "registry://dino/tacos:1", path)
	if _, err := push(t, ours, ref("dino", "tacos", "1"), string(body)); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, ours, stat(t, ours, ref("dino", "tacos", "1")), string(body))
	theirs.run("push", "--name", "registry://dino/tacos:1", path)
	if _, err := read(t, ours, stat(t, ours, ref("dino", "tacos", "1"))); err == nil {
		t.Fatal("the server did not lose it")
	}
}
