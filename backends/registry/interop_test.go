//go:build interop

package registry_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest/pyclient"
)

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
	program := pyclient.Install(t)
	for _, works := range []bool{true, false} {
		t.Run(fmt.Sprintf("delete works %v", works), func(t *testing.T) {
			s := serve(t, registrytest.Options{DeleteWorks: works})
			ours := dial(t, s, account(), nil)
			theirs := pyclient.New(t, program, s.URL, user, token)

			// They push, we read.
			first := image(1, 3<<20+17)
			out := theirs.Run("push", "--name", "registry://Dino/Tacos:V1", theirs.File("first.sif", first))
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
			if out := theirs.Run("search", "dino/"); !strings.Contains(out, "dino/salad:1.0_a") || !strings.Contains(out, "dino/tacos:v1") {
				t.Errorf("search of a collection:\n%s", out)
			}
			if out := theirs.Run("search", "*"); !strings.Contains(out, "dino/salad:1.0_a") {
				t.Errorf("search of everything:\n%s", out)
			}
			if out := theirs.Run("search", "dino/salad:1.0_a"); !strings.Contains(out, "dino/salad") {
				t.Errorf("search of an image:\n%s", out)
			}
			for name, want := range map[string][]byte{"dino/salad:1.0_a": second, "dino/tacos:v1": first} {
				theirs.Run("pull", "--name", "pulled.sif", "--no-cache", "registry://"+name)
				got, err := os.ReadFile(filepath.Join(theirs.Home, "pulled.sif"))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s was pulled as %d bytes of %d, %v", name, len(got), len(want), err)
				}
				_ = os.Remove(filepath.Join(theirs.Home, "pulled.sif")) // the next pull makes it
			}

			// They overwrite what we pushed; our record is then of the past.
			old := stat(t, ours, ref("dino", "salad", "1.0_a"))
			theirs.Run("push", "--name", "registry://dino/salad:1.0_a", theirs.File("third.sif", first))
			if _, err := read(t, ours, old); err == nil {
				t.Error("the old record still opens")
			}
			wantBytes(t, ours, stat(t, ours, old.Ref), string(first))

			// A private image, by the signed request of either side.
			s.MakeCollection("dino", true, user)
			wantBytes(t, dial(t, s, account(), nil), stat(t, dial(t, s, account(), nil), rec.Ref), string(first))
			theirs.Run("pull", "--name", "private.sif", "--no-cache", "registry://dino/tacos:v1")
			s.MakeCollection("dino", false, user)

			out, err := theirs.Try("delete", "--force", "registry://dino/tacos:v1")
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
			if out, err := theirs.Try("pull", "--name", "gone.sif", "--no-cache", "registry://dino/salad:1.0_a"); err == nil {
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
	theirs := pyclient.New(t, program, s.URL, user, token)
	body := image(3, 100_000)
	path := theirs.File("a.sif", body)
	theirs.Run("push", "--name", "registry://dino/tacos:1", path)
	if _, err := push(t, ours, ref("dino", "tacos", "1"), string(body)); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, ours, stat(t, ours, ref("dino", "tacos", "1")), string(body))
	theirs.Run("push", "--name", "registry://dino/tacos:1", path)
	if _, err := read(t, ours, stat(t, ours, ref("dino", "tacos", "1"))); err == nil {
		t.Fatal("the server did not lose it")
	}
}
