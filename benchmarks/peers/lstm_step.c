/* One step of an LSTM, written as plainly as C allows. The gates are i f g o. */
#include <math.h>

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* w_x [features, 4 units], w_h [units, 4 units], b [4 units], x [batch, features].
   h and c [batch, units] are replaced; z [4 units] is memory to work in. */
void lstm_step(int batch, int features, int units, const float *restrict w_x,
               const float *restrict w_h, const float *restrict b,
               const float *restrict x, float *restrict h, float *restrict c,
               float *restrict z) {
  const int gates = 4 * units;
  for (int row = 0; row < batch; ++row, x += features, h += units, c += units) {
    for (int k = 0; k < gates; ++k) z[k] = b[k];
    for (int d = 0; d < features; ++d)
      for (int k = 0; k < gates; ++k) z[k] += x[d] * w_x[d * gates + k];
    for (int d = 0; d < units; ++d)
      for (int k = 0; k < gates; ++k) z[k] += h[d] * w_h[d * gates + k];
    for (int k = 0; k < units; ++k) {
      const float i = sigmoid(z[k]), f = sigmoid(z[units + k]);
      const float g = tanhf(z[2 * units + k]), o = sigmoid(z[3 * units + k]);
      c[k] = f * c[k] + i * g;
      h[k] = o * tanhf(c[k]);
    }
  }
}
