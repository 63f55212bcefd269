package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// status is what a running mount tells about itself.
type status struct {
	PID         int       `json:"pid"`
	Version     string    `json:"version"`
	Spec        string    `json:"spec"`
	Mountpoint  string    `json:"mountpoint"`
	CacheDir    string    `json:"cache_dir"`
	Since       time.Time `json:"since"`
	OpenFiles   int       `json:"open_files"`
	CacheUsed   int64     `json:"cache_used"`
	CacheLimit  int64     `json:"cache_limit"` // 0: no bound
	Staged      int       `json:"staged"`      // of this registry
	StagedBytes int64     `json:"staged_bytes"`
}

// controls are what a mount lets its owner do through the socket. They are
// called concurrently.
type controls struct {
	status  func() status
	refresh func(ctx context.Context, path string) error // path below the mountpoint; "": everything
	unmount func(ctx context.Context, force bool) error  // returns when the mount is gone
}

// answer is the body of every reply but status's.
type answer struct {
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
	Kind  uint8  `json:"kind,omitempty"`
}

// socketDirs are where the control socket of a mount may be, the best first. A
// client looks in each, since its environment may not be the mount's.
func socketDirs(getenv func(string) (string, bool), uid int) []string {
	tmp := fmt.Sprintf("/tmp/sregistry-fs-%d", uid)
	if uid == 0 {
		return []string{"/run/sregistry-fs", tmp}
	}
	if base, ok := getenv("XDG_RUNTIME_DIR"); ok && filepath.IsAbs(base) {
		return []string{filepath.Join(base, "sregistry-fs"), tmp}
	}
	return []string{fmt.Sprintf("/run/user/%d/sregistry-fs", uid), tmp}
}

// socketName is short, as the path of a socket has to be.
func socketName(mountpoint string) string {
	sum := sha256.Sum256([]byte(mountpoint))
	return hex.EncodeToString(sum[:8]) + ".sock"
}

// control is a listening control socket.
type control struct {
	path   string
	server *http.Server
	done   chan struct{}
}

// listenControl serves c for the mount at mountpoint. The caller closes it.
func listenControl(dirs []string, mountpoint string, c controls) (*control, error) {
	var errs []error
	for _, dir := range dirs {
		if err := privateDir(dir, os.Lstat); err != nil {
			errs = append(errs, err)
			continue
		}
		path := filepath.Join(dir, socketName(mountpoint))
		// The mountpoint was found free, so a socket of this name is a dead
		// mount's.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		l, err := net.Listen("unix", path)
		if err == nil {
			err = os.Chmod(path, 0o600)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s := &control{path: path, server: &http.Server{Handler: c.handler(), ReadHeaderTimeout: 10 * time.Second}, done: make(chan struct{})}
		go func() {
			defer close(s.done)
			_ = s.server.Serve(l) // ends with close
		}()
		return s, nil
	}
	return nil, fmt.Errorf("control socket: %w", errors.Join(errs...))
}

// close lets replies that are being written finish within ctx, removes the
// socket and waits for the server to end.
func (s *control) close(ctx context.Context) {
	if s.server.Shutdown(ctx) != nil {
		_ = s.server.Close()
	}
	<-s.done
}

func (c controls) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.status())
	})
	mux.HandleFunc("POST /refresh", func(w http.ResponseWriter, r *http.Request) {
		reply(w, c.refresh(r.Context(), r.URL.Query().Get("path")))
	})
	mux.HandleFunc("POST /umount", func(w http.ResponseWriter, r *http.Request) {
		// The client may leave; the unmount goes on.
		reply(w, c.unmount(context.WithoutCancel(r.Context()), r.URL.Query().Get("force") == "true"))
	})
	return mux
}

func reply(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	var a answer
	if err != nil {
		a = answer{Error: err.Error(), Hint: hintOf(err), Kind: uint8(backends.KindOf(err))}
		w.WriteHeader(http.StatusInternalServerError)
	}
	_ = json.NewEncoder(w).Encode(a)
}

// errNoControl says that no daemon answers for a mountpoint.
var errNoControl = errors.New("no daemon answers")

// ask sends a request to the mount at mountpoint and decodes the reply into
// out, which may be nil. It is errNoControl when nobody listens.
func ask(ctx context.Context, dirs []string, mountpoint, method, path string, query url.Values, out any) error {
	var dialer net.Dialer
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			for _, dir := range dirs {
				if privateExists(dir) != nil {
					continue
				}
				if conn, err := dialer.DialContext(ctx, "unix", filepath.Join(dir, socketName(mountpoint))); err == nil {
					return conn, nil
				}
			}
			return nil, errNoControl
		},
	}}
	u := url.URL{Scheme: "http", Host: "mount", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if errors.Is(err, errNoControl) {
		return errNoControl
	}
	if err != nil {
		return fmt.Errorf("ask the mount at %s: %w", mountpoint, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("ask the mount at %s: %w", mountpoint, err)
	}
	if resp.StatusCode != http.StatusOK {
		var a answer
		if json.Unmarshal(body, &a) != nil || a.Error == "" {
			return fmt.Errorf("ask the mount at %s: status %d", mountpoint, resp.StatusCode)
		}
		return &remoteError{answer: a}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(body, out)
}

// remoteError is an error that the daemon reported: its text as it was, its
// kind and hint as they were.
type remoteError struct{ answer answer }

func (e *remoteError) Error() string { return e.answer.Error }

// Unwrap gives an Error so that kind and hint are found again.
func (e *remoteError) Unwrap() error {
	return &backends.Error{Kind: backends.Kind(e.answer.Kind), Hint: e.answer.Hint}
}

// privateExists checks a socket directory that may not exist without making it.
func privateExists(dir string) error {
	if _, err := os.Lstat(dir); err != nil {
		return err
	}
	return privateDir(dir, os.Lstat)
}
