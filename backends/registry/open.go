package registry

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// Open streams the whole image. It costs one download of the weekly limit, and
// a record request unless another image of the collection was opened before:
// they share one secret address.
func (b *registry) Open(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
	id, err := version(opOpen, rec)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	known := b.secrets[rec.Collection]
	b.mu.Unlock()
	tried := false
	if known != "" && isASCII(rec.Ref.String()) {
		st, err := b.download(ctx, rec.Ref, id, known, true)
		tried = errors.Is(err, backends.NotFound)
		if !tried && !errors.Is(err, backends.Stale) {
			return st, err
		}
		// The secret, the container or its name is another now; the record tells.
	}
	now, secret, err := b.record(ctx, opOpen, rec.Ref)
	switch {
	case err != nil:
		return nil, err
	case now.Version != rec.Version:
		return nil, backends.Errorf(opOpen, rec.Ref, backends.Stale, "the tag names container %s now, not %s", now.Version, rec.Version)
	case secret == "":
		return nil, backends.Errorf(opOpen, rec.Ref, backends.Unsupported, "the registry gives no download address of its own")
	}
	err = backends.NotFound
	if !tried || secret != known {
		var st *backends.Stream
		if st, err = b.download(ctx, rec.Ref, id, secret, false); err == nil {
			return st, nil
		}
	}
	if errors.Is(err, backends.NotFound) {
		return nil, &backends.Error{
			Op: opOpen, Ref: rec.Ref, Kind: backends.Unavailable,
			Err: errors.New("the registry has the record but not the image"), Hint: hintLost,
		}
	}
	return nil, err
}

const hintLost = "the registry may have lost the file; push other bytes to this tag, or delete it on the registry's web page first"

// download opens the secret address. A failure is not tried again: each try
// counts as a view, and may count as a download. With named, the answer has to be
// for ref, else Stale: nothing but the file name in it ties the number to a name.
func (b *registry) download(ctx context.Context, ref backends.Ref, id int64, secret string, named bool) (*backends.Stream, error) {
	c := call{
		Request: transport.Request{
			Op: opOpen, Ref: ref, URL: b.at(false, "containers", strconv.FormatInt(id, 10), "download", secret),
			NoRetry: true, SecretPath: true,
			Check: func(_ int, h http.Header) error {
				if strings.HasPrefix(h.Get("Content-Type"), "text/html") {
					return backends.Errorf(opOpen, ref, backends.Unavailable, "a web page instead of the image")
				}
				if named && !names(h.Get("Content-Disposition"), ref) {
					return backends.Errorf(opOpen, ref, backends.Stale, "container %d has another name", id)
				}
				return nil
			},
		},
		view: viewDownload,
	}
	if err := b.prepare(&c); err != nil {
		return nil, err
	}
	st, err := b.client.Stream(ctx, c.Request)
	b.note(c, err)
	if err != nil {
		return nil, serverFault(err, hintLost)
	}
	st.Validator = "container " + strconv.FormatInt(id, 10)
	return st, nil
}

// names reports whether a Content-Disposition is that of ref: collection-name:tag.sif,
// with the version in the tag's place if the image is frozen.
func names(disposition string, ref backends.Ref) bool {
	_, file, ok := strings.Cut(disposition, `filename="`)
	if !ok {
		return false
	}
	name := storedName(ref)
	if name != ref.Collection {
		name = ref.Collection + "/" + name
	}
	word, ok := strings.CutPrefix(strings.TrimSuffix(file, `.sif"`), strings.ReplaceAll(name, "/", "-")+":")
	return ok && (word == strings.ReplaceAll(ref.Tag, "/", "-") || !digestOf(word).IsZero())
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
