package registry

import (
	"context"
	"crypto/md5" // the registry's own identifier, not a defence
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// uploadDone is the one message that means success.
const uploadDone = "Upload Complete"

const hintOwner = "only an owner of the collection can push to it; of others, even of a superuser, the server throws the upload away and still acknowledges it"

// Push asks for the record first, and succeeds without an upload if it is of the
// same bytes: the server would lose the image. Afterwards it asks again, and
// succeeds only if the record is of the bytes that were sent.
func (b *registry) Push(ctx context.Context, ref backends.Ref, src backends.Source, report func(sent int64)) (backends.Record, error) {
	none := backends.Record{}
	want, err := pushRef(ref)
	if err != nil {
		return none, err
	}
	if err := b.cred.check(opPush, want); err != nil {
		return none, err
	}
	p := &push{b: b, ref: want, src: src, report: report}
	p.before, err = b.stat(ctx, opPush, want)
	switch {
	case errors.Is(err, backends.NotFound):
		p.before = none
	case err != nil: // uploading unseen could destroy what is there
		return none, err
	case p.before.Frozen:
		return none, &backends.Error{Op: opPush, Ref: want, Kind: backends.Frozen, Hint: "use another tag, or unfreeze it on the registry's web page"}
	}
	if same, err := p.holds(ctx, p.before); err != nil || same {
		return p.done(p.before), err
	}
	if err := p.announce(ctx); err != nil {
		return none, err
	}
	return p.upload(ctx)
}

// push is one Push under way.
type push struct {
	b      *registry
	ref    backends.Ref
	src    backends.Source
	report func(int64)
	before backends.Record // zero if there was none
	cid    int64           // of the collection
	md5    string          // of src, once it was read
}

// holds reports whether rec is of the bytes of p.src.
func (p *push) holds(ctx context.Context, rec backends.Record) (bool, error) {
	switch rec.Digest.Algorithm {
	case "sha256":
		return rec.Digest == p.src.Digest(), nil
	case "md5":
		if p.md5 == "" {
			h := md5.New()
			if _, err := io.Copy(h, &ctxReader{ctx, io.NewSectionReader(p.src, 0, p.src.Size())}); err != nil {
				return false, &backends.Error{Op: opPush, Ref: p.ref, Kind: backends.KindOf(err), Err: err}
			}
			p.md5 = hex.EncodeToString(h.Sum(nil))
		}
		return rec.Digest.Hex == p.md5, nil
	}
	return false, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// done completes the record of a push: its size is that of the source.
func (p *push) done(rec backends.Record) backends.Record {
	if rec.Version != "" {
		rec.Size = p.src.Size()
	}
	return rec
}

// announce is the first step: may this user push there, and into which collection?
func (p *push) announce(ctx context.Context) error {
	body, err := json.Marshal(map[string]string{"collection": p.ref.Collection, "name": p.ref.Image, "tag": p.ref.Tag})
	if err != nil {
		return &backends.Error{Op: opPush, Ref: p.ref, Kind: backends.Invalid, Err: err}
	}
	var answer struct {
		CID int64 `json:"cid"`
	}
	err = p.b.signed(opPush, p.ref, "push", p.ref.Image, func(auth string) error {
		return p.b.json(ctx, call{
			Request: transport.Request{
				Op: opPush, Ref: p.ref, Method: http.MethodPost, URL: p.b.at(false, "api", "upload", "chunked_upload"),
				Body: inMemory(body), Length: int64(len(body)),
			},
			auth: auth, view: viewPush,
		}, &answer)
	})
	if statusOf(err) == http.StatusInternalServerError { // every refusal of this view
		return &backends.Error{
			Op: opPush, Ref: p.ref, Kind: backends.Denied, Err: cause(err),
			Hint: "check user name and token; pushing needs to own the collection, or the right to create one, and to be enabled on the server",
		}
	}
	p.cid = answer.CID
	if err == nil && p.cid == 0 {
		err = backends.Errorf(opPush, p.ref, backends.Unavailable, "the registry names no collection to upload to")
	}
	return err
}

// upload is the second step, with the look afterwards that tells whether it
// happened. It is done once more if the hour of the signature was over when
// the server compared it, at the end of the upload.
func (p *push) upload(ctx context.Context) (backends.Record, error) {
	for again := false; ; again = true {
		hour, err := p.b.uploadHour(ctx, p.src.Size())
		if err != nil {
			return backends.Record{}, &backends.Error{Op: opPush, Ref: p.ref, Kind: backends.KindOf(err), Err: err}
		}
		message, err := p.send(ctx, hour)
		if err != nil && ctx.Err() != nil {
			return backends.Record{}, err
		}
		if err == nil && message == uploadDone {
			return p.verify(ctx)
		}
		if err != nil && neverArrived(err) {
			return backends.Record{}, err
		}
		// The answer may have been lost, or be an exception after the image was
		// stored; to send the same bytes again would then destroy it.
		now, serr := p.b.stat(ctx, opPush, p.ref)
		if serr == nil {
			if same, _ := p.holds(ctx, now); same {
				return p.done(now), nil
			}
		}
		switch {
		case err == nil && serr == nil && now.Frozen:
			return backends.Record{}, &backends.Error{Op: opPush, Ref: p.ref, Kind: backends.Frozen}
		case err == nil:
			return backends.Record{}, invalid(opPush, p.ref, "", "the registry answers %s", strconv.QuoteToASCII(message[:min(len(message), 200)]))
		case p.b.otherHour(err, hour) && !again && (serr == nil || errors.Is(serr, backends.NotFound)):
			continue
		case statusOf(err) == http.StatusInternalServerError:
			return backends.Record{}, &backends.Error{Op: opPush, Ref: p.ref, Kind: backends.Denied, Err: cause(err), Hint: hintOwner}
		}
		return backends.Record{}, serverFault(err, "")
	}
}

// neverArrived reports whether the web server refused before the
// registry saw the upload, or the registry counted it out.
func neverArrived(err error) bool {
	switch backends.KindOf(err) {
	case backends.Throttled, backends.Quota, backends.Invalid, backends.Unsupported:
		return true
	}
	return false
}

// send uploads once and gives the registry's message.
func (p *push) send(ctx context.Context, hour time.Time) (string, error) {
	auth := p.b.cred.sign("upload", p.ref.Collection, p.ref.Image, p.ref.Tag, hour)
	form := newForm(ctx, auth, p.ref, p.cid, p.src, p.report)
	var answer struct {
		Message string `json:"message"`
	}
	began := p.b.now()
	err := p.b.json(ctx, call{
		Request: transport.Request{
			Op: opPush, Ref: p.ref, Method: http.MethodPost, URL: p.b.at(false, "upload"),
			Body: form.open, Length: form.length(), NoRetry: true,
		},
		auth: auth, view: viewUpload, form: form.contentType(),
	}, &answer)
	if sum, ok := form.sum(); ok {
		p.md5 = sum
		if took := p.b.now().Sub(began); took > time.Second {
			p.b.rate.Store(max(1, int64(float64(p.src.Size())/took.Seconds())))
		}
	}
	return answer.Message, err
}

// verify asks what the registry has now.
func (p *push) verify(ctx context.Context) (backends.Record, error) {
	now, err := p.b.stat(ctx, opPush, p.ref)
	if errors.Is(err, backends.NotFound) || err == nil && now.Version == p.before.Version {
		return backends.Record{}, &backends.Error{
			Op: opPush, Ref: p.ref, Kind: backends.Denied,
			Err: errors.New("the registry acknowledged the upload but did not store it"), Hint: hintOwner,
		}
	}
	if err != nil {
		return backends.Record{}, err
	}
	same, err := p.holds(ctx, now)
	if err != nil {
		return backends.Record{}, err
	}
	if !same {
		return backends.Record{}, backends.Errorf(opPush, p.ref, backends.Stale, "the registry has other bytes than were sent; was something else pushed at the same time?")
	}
	return p.done(now), nil
}

// guessedRate is what an upload is expected to run at until one was measured.
const guessedRate = 32 << 20

// uploadHour gives the hour to sign an upload for: the one in which it will end. It
// waits for the next hour if the upload might end in either.
func (b *registry) uploadHour(ctx context.Context, size int64) (time.Time, error) {
	rate := b.rate.Load()
	if rate == 0 {
		rate = guessedRate
	}
	took := time.Duration(float64(size) / float64(rate) * float64(time.Second))
	surely := 2*took + 5*time.Second
	now := b.serverNow()
	rest := now.Truncate(time.Hour).Add(time.Hour).Sub(now)
	switch {
	case surely <= rest:
		return now, nil
	case surely > time.Hour: // no hour is surely long enough
		return now.Add(took), nil
	}
	if err := b.sleep(ctx, rest+time.Second); err != nil {
		return time.Time{}, err
	}
	return now.Add(rest + time.Second), nil
}
