package registry_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/registry"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
	"github.com/sregistry/sregistry-fs/secrets"
)

const (
	user  = "vsoch"
	token = "0123456789abcdef0123456789abcdef01234567"
)

// buffer is a log that can be written and read at once.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func serve(t testing.TB, o registrytest.Options) *registrytest.Server {
	t.Helper()
	o.Dir = t.TempDir()
	if o.Users == nil {
		o.Users = []registrytest.User{{Name: user, Token: token}}
	}
	s, err := registrytest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func dial(t testing.TB, s *registrytest.Server, settings map[string]string, log *buffer) backends.Backend {
	t.Helper()
	if log == nil {
		log = &buffer{}
	}
	b, err := registry.Driver().Dial(t.Context(), backends.Config{
		Location: s.URL,
		Settings: secrets.Fixed("registry", settings),
		Log:      slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:      time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func account() map[string]string {
	return map[string]string{"SREGISTRY_REGISTRY_USERNAME": user, "SREGISTRY_REGISTRY_TOKEN": token}
}

// fits are the names that the server stores as they are.
func fits(ref backends.Ref) bool {
	mangled := false
	for _, ext := range []string{".img", ".simg", ".sif"} {
		mangled = mangled || strings.Contains(ref.Image+":"+ref.Tag, ext)
	}
	long := len("/var/www/images/")+len(ref.String())+len("@.sif")+32 > 255
	plain := strings.Trim(ref.Collection, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	return plain && !mangled && !long && !strings.Contains(ref.Tag, ":") &&
		ref.Image == strings.ToLower(ref.Image) && ref.Tag == strings.ToLower(ref.Tag)
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]registrytest.Options{
		"worker late": {NoLimits: true, DeleteWorks: true},
		"worker":      {NoLimits: true, DeleteWorks: true, Worker: true},
		"small pages": {NoLimits: true, DeleteWorks: true, MaxLimit: 3},
	} {
		t.Run(name, func(t *testing.T) { backendtest.Run(t, harness(o)) })
	}
}

func TestConformanceAsShipped(t *testing.T) {
	h := harness(registrytest.Options{NoLimits: true})
	h.DeleteBroken = "the shipped server answers every permitted DELETE with 500"
	backendtest.Run(t, h)
}

func harness(o registrytest.Options) backendtest.Harness {
	return backendtest.Harness{
		Fits: fits,
		New: func(t testing.TB) backendtest.Store {
			s := serve(t, o)
			log := &buffer{}
			return backendtest.Store{
				Backend: dial(t, s, account(), log),
				Seed: func(ref backends.Ref, data []byte) error {
					s.MakeCollection(ref.Collection, false, user)
					_, err := s.Add(registrytest.Image{Collection: ref.Collection, Name: ref.Image, Tag: ref.Tag}, bytes.NewReader(data))
					return err
				},
				Remove: func(ref backends.Ref) error {
					s.Remove(ref.Collection, ref.Image, ref.Tag)
					return nil
				},
				Freeze: func(ref backends.Ref) error {
					s.Freeze(ref.Collection, ref.Image, ref.Tag, true)
					return nil
				},
				Reopen:   func(t testing.TB) backends.Backend { return dial(t, s, account(), log) },
				Requests: func() int { return s.Count("") },
				Secrets:  []string{token},
				Log:      log.String,
			}
		},
	}
}
